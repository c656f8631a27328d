"""`saqkit.record`: writes down what any SAQ application does, in a format that `saqkit.read_recording` reads."""
