"""Making those pending again in the ledger whom dead letters did not serve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from saqkit.app.location import database_url
from saqkit.app.store import Store

if TYPE_CHECKING:
    from saqkit.queue.letter import DeadLetter
    from saqkit.spec.topology import Topology


async def reopen_users(topology: Topology, letters: Iterable[DeadLetter], merged: Mapping[str, Any]) -> int:
    """The ledger gave these jobs' users up; a worker serves only those who are pending. Returns of how many.

    `merged` are arguments that win over those of the letters. `StoreError` if the database cannot be opened, which it
    is only for jobs that keep a ledger.
    """
    batches = []
    for letter in letters:
        job, kwargs = topology.job_types.get(letter.function), {**letter.kwargs, **merged}
        if job is not None and job.per_user.database == "ledger" and {"event", "users"} <= kwargs.keys():
            channel = topology.providers[job.per_user.provider].channel if job.per_user.provider else "none"
            batches.append((kwargs["event"], kwargs["users"], channel))
    if not batches:
        return 0
    async with await Store.open(database_url()) as store:
        return sum([await store.reopen(*batch) for batch in batches])
