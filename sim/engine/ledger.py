"""The rows of the ledger that several jobs of one event share: whoever has a result there is not served again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from saqkit.spec.lifecycle import Action
from saqkit.spec.topology import JobType, Topology

if TYPE_CHECKING:
    from sim.engine.attempt import Attempt


def ways(topology: Topology) -> Counter[str]:
    """By how many ways, at most, an event reaches its users with jobs of each type; callbacks have no users."""
    most: Counter[str] = Counter()
    for entry in topology.entry:
        found: Counter[str] = Counter()
        left = [*topology.starts(entry)]
        while left:
            found[name := left.pop()] += 1
            job = topology.job_types[name]
            left += [edge.to for edge in job.follow_up] + ([job.fan_out.to] if job.fan_out else [])
        most |= found
    return most


def channel_of(topology: Topology, job: JobType) -> str | None:
    """The channel under which jobs of this type write users into the ledger; None if they do not."""
    if job.fan_out or job.per_user.database != "ledger":
        return None
    name = job.per_user.provider
    return "none" if name is None else topology.providers[name].channel


def shared_channels(topology: Topology) -> dict[str, list[str]]:
    """Channels by which an event reaches the same users more than once, and the job types that write there."""
    found = dict[str, list[str]]()
    for entry in topology.entry:
        here = topology.model_copy(update={"entry": (entry,)})
        counts: Counter[str] = Counter()
        names: defaultdict[str, list[str]] = defaultdict(list)
        for name, count in ways(here).items():
            if (channel := channel_of(topology, topology.job_types[name])) is not None:
                counts[channel] += count
                names[channel].append(name)
        for channel in counts:
            if counts[channel] > 1:
                found[channel] = sorted({*found.get(channel, ()), *names[channel]})
    return found


class SharedLedger:
    """Who has a result, by event and channel; results are known once they are committed, as in the database.

    Two jobs that begin before either has results serve a user both, in the real application too.
    """

    def __init__(self, topology: Topology) -> None:
        self._channels = {name: channel_of(topology, job) for name, job in topology.job_types.items()}
        self._settled: defaultdict[tuple[int, str], set[int]] = defaultdict(set)

    def pending(self, attempt: Attempt) -> Sequence[int]:
        """Those of an attempt's users who have no result yet, in order."""
        settled = self._of(attempt)
        return [user for user in attempt.users if user not in settled] if settled else attempt.users

    def committed(self, attempts: Iterable[Attempt]) -> None:
        """What these attempts have written by now is durable."""
        for attempt in attempts:
            if (settled := self._of(attempt)) is not None:
                settled.update(attempt.sent[: attempt.durable], attempt.refused)

    def ended(self, attempt: Attempt) -> None:
        """All its results are written; with a job that is dead those whom it left unserved have failed."""
        if (settled := self._of(attempt)) is not None:
            settled.update(attempt.job.users if attempt.action == Action.BURY else (*attempt.sent, *attempt.refused))

    def _of(self, attempt: Attempt) -> set[int] | None:
        channel = self._channels[attempt.job.type_name]
        return None if channel is None else self._settled[attempt.job.event, channel]
