"""Worker processes: one event loop that serves all queues of a topology, and the launcher that supervises them."""
