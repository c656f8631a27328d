"""How soon a thread gets Python's interpreter in a worker process: what the queue sets, and the model counts with."""

SWITCH_S = 0.0001
"""The switch interval of a process that holds jobs, in seconds (`sys.setswitchinterval`); Python's own is 0.005.

A thread that waits for the interpreter asks for it after this time without a switch. An event loop that never sleeps
lets go of it at each turn, for a moment that is too short for the thread, whose wait then begins anew: so turns that
are shorter than the interval starve it. With Python's own 5 ms leases are renewed late, and a transaction of SQLite
takes seconds.
"""
