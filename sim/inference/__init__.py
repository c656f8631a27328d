"""From a table of attempts to a description: what each part of it shows, and how surely."""
