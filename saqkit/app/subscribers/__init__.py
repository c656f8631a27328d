"""Who subscribes to the events of `voting` and `school-erp`, and what each does with one.

`subscribing.subscribed` makes the bus of a worker, with the subscribers of its topology.
"""
