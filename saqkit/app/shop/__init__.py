"""The shop: orders that are checked out, charged once, and told of."""
