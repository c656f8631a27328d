"""The event bus: events that are published once, and delivered to each of their subscribers as a job of its own."""
