"""The batch of a fan-out: whom it calls back when the jobs that it has enqueued have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.engine.jobs import Job

if TYPE_CHECKING:
    from sim.engine.model import Model


@dataclass
class Batch:
    """Of the jobs of `fan_out`: how many have not ended yet and how many are dead, and whether more may be added."""

    fan_out: Job
    pending: int = 0
    dead: int = 0
    open: bool = True


class Batches:
    """The batches of a run, by the key of their fan-out. Whom they call back is a child of it too, but no member."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._batches: dict[str, Batch] = {}

    def joined(self, parent: Job, parts: Sequence[Sequence[int]]) -> None:
        """Jobs for parts of its users were enqueued by `parent`."""
        if parent.type.fan_out and parent.type.fan_out.calls_back:
            self._of(parent).pending += sum(1 for part in parts if len(part))

    def ended(self, job: Job, dead: bool) -> None:
        """A job is done or dead. A fan-out that is done adds no more."""
        if job.type.fan_out and job.type.fan_out.calls_back and not dead:
            batch = self._of(job)
            batch.open = False
            self._settle(batch)
        if not len(job.users) or not (found := self._batches.get(job.parent)):
            return
        found.pending -= 1
        found.dead += dead
        if dead and found.dead == 1:
            self._call(found, "death")
        self._settle(found)

    def _of(self, fan_out: Job) -> Batch:
        return self._batches.setdefault(fan_out.key, Batch(fan_out))

    def _settle(self, batch: Batch) -> None:
        if not batch.open and not batch.pending:
            self._call(batch, "complete")
            if not batch.dead:
                self._call(batch, "success")

    def _call(self, batch: Batch, event: str) -> None:
        if target := getattr(batch.fan_out.type.fan_out, f"on_{event}"):
            self._model.enqueue_children(batch.fan_out, target, [()], f"on_{event}")
