"""How many connections to the broker worker processes need, and whether the server has room for them."""

from __future__ import annotations

from saqkit.broker_address import info, redact
from saqkit.errors import BrokerError

PER_QUEUE = 3
"""The blocking wait for jobs, the renewal of leases from its own thread, and scripts that overlap with others'."""
PER_PROCESS = 3
"""What all queues of a process share, and the relay."""


def needed(queues: int, processes: int) -> int:
    """About how many connections `processes` need that serve `queues` each, whatever their slots."""
    return processes * (PER_PROCESS + PER_QUEUE * queues)


def check_room(url: str, queues: int, processes: int = 1) -> str:
    """Compare what is needed with what the server allows; returns a warning, empty if there is room.

    Raises `BrokerError` if the server's `maxclients` is too low for them even without anybody else. What others use
    now is only warned of: it may be the workers that these take the place of.
    """
    found = info(url)
    if "maxclients" not in found:
        return ""
    need, most = needed(queues, processes), int(found["maxclients"])
    others = int(found.get("connected_clients", 1)) - 1  # one of them asks this
    what = f"{processes} worker process{'es' if processes > 1 else ''} of {queues} queue{'s' if queues > 1 else ''}"
    hint = "raise maxclients, or start fewer processes or serve fewer queues"
    if need > most:
        raise BrokerError(f"{redact(url)}: {what} need about {need} connections, maxclients is {most} ({hint})")
    if need > most - others:
        return f"{what} need about {need} connections, of maxclients {most} others have {others} ({hint})"
    return ""
