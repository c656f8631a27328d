"""What planning asks of the model: the search, hard limits, saturation, waits, cost against time, when to scale."""
