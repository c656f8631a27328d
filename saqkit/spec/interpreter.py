"""How soon a thread gets Python's interpreter in a worker process: what the queue sets, and the model counts with."""

PYTHONS_SWITCH_S = 0.005
"""Python's own switch interval, in seconds (`sys.getswitchinterval`)."""
SWITCH_S = 0.0001
"""The switch interval of a process that holds jobs of ours, in seconds (`sys.setswitchinterval`).

A thread that waits for the interpreter asks for it after this time without a switch. An event loop that never sleeps
lets go of it at each turn, for a moment that is too short for the thread, whose wait then begins anew: so turns that
are shorter than the interval starve it. With Python's own leases are renewed late, and a transaction of SQLite
takes seconds.
"""
