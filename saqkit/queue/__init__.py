"""The queue: a drop-in for SAQ's Redis queue whose every transition is one script, with leases and fencing tokens."""
