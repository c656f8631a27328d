"""Statistics of replicated runs."""
