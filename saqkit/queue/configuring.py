"""What decides which job is taken next, and changing it while workers run; the level of a job that waits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from saq.job import Job

from saqkit.errors import UsageError
from saqkit.queue.stored import StoredJobs
from saqkit.spec.base import did_you_mean
from saqkit.spec.lifecycle import State
from saqkit.spec.topology import Priority, RateLimit, RunningLimit, Taking


class QueueSettings(Taking):
    """What holds now for all processes of a queue: what this one was started with, and over it what was configured."""

    configured: tuple[str, ...] = ()
    """Which of the others an operator has set by `configure`."""
    version: int = 0
    """How often that was done since the last `configure(None)`."""


class ConfiguredJobs(StoredJobs):
    """The half of a queue that knows what decides which job is next; see `Queue`."""

    taking: Taking
    providers: Mapping[str, str]
    rules: str
    """What is said of `taking` with every take (see `scripts/choosing.lua`); empty where levels and FIFO say it all."""

    def _take_by(self, providers: Mapping[str, str] | None, given: Mapping[str, Any]) -> None:
        """Take by these rules from the first take on. Raises `DescriptionError`."""
        self.taking, self.providers = Taking.parse(dict(given), f"queue {self.name}"), dict(providers or {})
        self._require_providers(self.taking)
        words = _words(self.taking, self.providers)
        del words["rate"]
        self.rules = json.dumps(words) if any(words.values()) else ""

    def _require_providers(self, taking: Taking) -> None:
        if any(limit.key == "provider" for limit in taking.running_limits) and not self.providers:
            raise UsageError(f"queue {self.name}: no job type is known to send by a provider (build the queue of its "
                             "topology, or give providers={job type: provider})")  # fmt: skip

    async def settings(self) -> QueueSettings:
        """What holds now, read from the server."""
        return self._settings(await self.run_script("configure"))

    async def configure(self, changes: Mapping[str, Any] | None = {}, /, **fields: Any) -> QueueSettings:
        """Change what decides which job is next, for all processes, at once, until it is changed again.

        Fields of `saqkit.spec.topology.Taking`, as keywords or in one mapping: `rate_limit`, `weights`, `fairness`,
        `tenant_rate_limit`, `running_limits`; None takes one away, others stay as they are. It outlives all processes
        and wins over what they are started with; `configure(None)` takes it all back. Returns what holds then. Raises
        `DescriptionError` for a wrong value, `UsageError` for a name that is none.
        """
        if changes is None:
            if fields:
                raise UsageError("configure(None) takes everything back: give fields in a call of their own")
            return self._settings(await self.run_script("configure", ""))
        given = {**changes, **fields}
        taking = self.checked(given)
        words = {_NAMES[name]: _words(taking, self.providers)[_NAMES[name]] for name in given}
        if words.get("limits"):
            words["providers"] = [list(pair) for pair in sorted(self.providers.items())]
        return self._settings(await self.run_script("configure", *([json.dumps(words)] if words else [])))

    def checked(self, changes: Mapping[str, Any]) -> Taking:
        """The rules of `changes` alone, without setting them. Raises what `configure` raises for them."""
        for name in changes:
            if name not in Taking.model_fields:
                hint = did_you_mean(name, Taking.model_fields)
                raise UsageError(f'queue {self.name}: there is no setting "{name}" ({hint})')
        off = {"fairness": "none", "running_limits": ()}
        given = {name: off.get(name) if value is None else value for name, value in changes.items()}
        taking = Taking.parse(given, f"queue {self.name}")
        self._require_providers(taking)
        return taking

    def _settings(self, stored: bytes) -> QueueSettings:
        live = json.loads(stored) if stored else {}
        fields = {name: getattr(self.taking, name) for name in Taking.model_fields}
        fields["configured"] = tuple(name for name, word in _NAMES.items() if word in live)
        fields["version"] = live.get("version", 0)
        for name in fields["configured"]:
            fields[name] = _READ[name](live[_NAMES[name]])
        return QueueSettings(**fields)

    async def set_priority(self, job: Job | str, level: int | str) -> None:
        """Give a job that waits, or is delayed, another level: it joins the end of its line there (1 to 4, or by name).

        A job that has that level already keeps its place. Raises `UsageError` for a job that runs or has ended, or is
        not there.
        """
        key = job if isinstance(job, str) else job.key
        names = {priority.name.lower(): int(priority) for priority in Priority}
        number = names.get(level.lower(), 0) if isinstance(level, str) else level
        if not isinstance(number, int) or isinstance(number, bool) or number not in names.values():
            raise UsageError(f"priority {level!r} of job {key}: 1 critical, 2 high, 3 normal, 4 low")
        done, state = await self.run_script("prioritise", key, number)
        if done:
            if isinstance(job, Job):
                job.priority = number
            return
        if not state:
            raise UsageError(f"queue {self.name} has no job {key}")
        is_ = {State.ACTIVE: "runs already", State.OUTGOING: "is on its way into another queue"}
        why = is_.get(State(state), f"is {State(state).name.lower()}")
        raise UsageError(f"job {key} {why}: only the priority of a job that waits can be changed")


_NAMES = {"rate_limit": "rate", "weights": "weights", "fairness": "fair", "tenant_rate_limit": "tenant_rate",
          "running_limits": "limits"}  # fmt: skip
"""What the fields are called in the scripts."""


def _words(taking: Taking, providers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "rate": _rate(taking.rate_limit),
        "weights": list(taking.weights.values()) if taking.weights else None,
        "fair": taking.fairness == "tenants",
        "tenant_rate": _rate(taking.tenant_rate_limit),
        "limits": [[limit.key, limit.limit] for limit in taking.running_limits] or None,
        "providers": [list(pair) for pair in sorted(providers.items())] if taking.running_limits else None,
    }


def _rate(limit: RateLimit | None) -> list[Any] | None:
    return [limit.limit, limit.period_s, limit.unit] if limit else None


def _read_rate(said: list[Any] | None) -> RateLimit | None:
    return RateLimit(limit=said[0], period_s=said[1], unit=said[2]) if said else None


def _read_weights(said: list[float] | None) -> dict[str, float] | None:
    return dict(zip((level.name.lower() for level in Priority), said, strict=True)) if said else None


def _read_limits(said: list[list[Any]] | None) -> tuple[RunningLimit, ...]:
    return tuple(RunningLimit(key=key, limit=limit) for key, limit in said or ())


_READ: dict[str, Any] = {"rate_limit": _read_rate, "weights": _read_weights, "tenant_rate_limit": _read_rate,
         "running_limits": _read_limits, "fairness": lambda fair: "tenants" if fair else "none"}  # fmt: skip
