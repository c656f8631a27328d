"""The emails of the course platform and of the voting system: types, templates, the calls that enqueue them, a sender.

A program that enqueues emails makes an `Emails`; a worker process has a `Sender` in its `Application`.
"""
