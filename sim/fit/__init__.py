"""From measured runs to a profile: what a description cannot say about a host."""
