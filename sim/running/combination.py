"""One combination of settings, predicted: its measures with intervals, its bottleneck, and what a stream adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np

from saqkit.spec import trace
from saqkit.spec.steady import Window
from saqkit.spec.workload import ClosedLoop
from sim.analysis.stability import Backlog
from sim.analysis.statistics import intervals
from sim.capacity.limits import best_rate, offered_users_per_s
from sim.engine.costs import PARTS
from sim.engine.outcome import Outcome
from sim.running.scenario import Scenario

TIES = ("rate_limit", "cores", "loop", "broker", "database", "slots", "provider")
"""Among parts whose relief helps alike, the one nearest to a hard limit is named first."""
PLURAL = ("slots", "cores")


@dataclass(frozen=True)
class Stream:
    """What the replications of a stream of arrivals, or of a closed loop, show beyond their measures.

    `backlog` is how the queue fares that grows most (none in a closed loop: it cannot grow), `window` the steady part
    and `replications` the measures there, as of `saqkit.spec.steady`. `played` is false where the backlog grew, and the
    stream was too long to be played to its end.
    """

    backlog: Backlog | None
    window: Window | None
    replications: tuple[Mapping[str, float], ...]
    played: bool = True

    @property
    def stable(self) -> bool:
        """Whether the backlog stays as it is."""
        return not self.backlog or not self.backlog.grows


@dataclass(frozen=True, eq=False)
class Combination:
    """One combination of settings: its replications' tables and measures, and for streams what is steady in them.

    `missed` names the measure whose mean is not known as well as was asked for; empty if it is, or if a number of
    replications was asked for.
    """

    settings: Mapping[str, Any]
    scenario: Scenario
    outcomes: tuple[Outcome, ...]
    replications: tuple[Mapping[str, float], ...]
    stream: Stream | None = None
    missed: str = ""

    @property
    def half_width(self) -> float:
        """Of the mean of `missed`, relative to it: how well that is known."""
        known = intervals([found[self.missed] for found in self.replications])
        return (known["mean_hi"] - known["mean"]) / known["mean"] if known["mean"] else 0.0

    @cached_property
    def measures(self) -> dict[str, dict[str, float]]:
        """Each measure as `{mean, lo, hi, mean_lo, mean_hi}`; NaN for a stream that was not played to its end."""
        if self.stream and not self.stream.played:
            return {name: intervals([]) for name in trace.MEASURES}
        return self._intervals(self.replications)

    @cached_property
    def steady(self) -> dict[str, dict[str, float]] | None:
        """`measures` over the users of a stream's steady part (`stream.window`); None where nothing is steady."""
        return self._intervals(self.stream.replications) if self.stream and self.window else None

    @property
    def window(self) -> Window | None:
        """The part of a stream that `steady` counts; None where nothing is steady."""
        return self.stream.window if self.stream and self.stable else None

    def _intervals(self, replications: tuple[Mapping[str, float], ...]) -> dict[str, dict[str, float]]:
        residual = 0.0 if self.scenario.same_draw else self.scenario.profile.residual
        return {
            name: intervals([found[name] for found in replications], residual if name.endswith("_s") else 0.0)
            for name in trace.MEASURES
        }

    @property
    def stable(self) -> bool | None:
        """Whether the backlog of a stream or closed loop stays as it is; None for what comes to an end by itself."""
        return self.stream.stable if self.stream else None

    @cached_property
    def verdict(self) -> str:
        """In words, whether a stream is more than the system can take; empty for what comes to an end by itself."""
        if not self.stream:
            return ""
        backlog = self.stream.backlog
        if not backlog or not backlog.grows:
            why, arrivals = "the backlog does not grow", self.scenario.workload.arrivals
            if isinstance(arrivals, ClosedLoop):
                why = f"a closed loop never has more than its {arrivals.clients:,} events under way"
            shares = {part: self.utilisation[part] for part in TIES if part != "provider"}
            part = max(shares, key=lambda name: shares[name])
            return f"stable: {why}; the {_named(part)} {shares[part]:.0%} busy"
        part, busy, cut = _named(self.bottlenecks[0]), backlog.load, ""
        hard, offered = best_rate(self.scenario), offered_users_per_s(self.scenario.workload) or 0.0
        if self.bottlenecks[0] == "rate_limit" and hard.users_per_s <= offered:
            part, busy = f"{hard.why} (at best {hard.users_per_s:.3g} users/s) is", offered / hard.users_per_s
        if not self.stream.played:
            cut = "; the stream was not played to its end"
        return (
            f"unstable: the backlog of {backlog.queue} grows by {backlog.jobs_per_s:.3g} jobs a second: "
            f"the {part} at {f'{busy:.0%}' if busy < inf else 'far more than 100%'}{cut}"
        )

    @cached_property
    def utilisation(self) -> dict[str, float]:
        """Share of each part's capacity that was used, mean over replications (see `Prediction`)."""
        return {part: float(np.mean([o.utilisation[part] for o in self.outcomes])) for part in PARTS}

    @cached_property
    def reliefs(self) -> dict[str, float]:
        """How much shorter (share of the makespan) the drain is with twice the capacity of each part.

        Replication 0 is run again for each part; parts that are hardly used cannot help and are not tried.
        """
        base = self.replications[0]["makespan_s"]
        gains = dict.fromkeys(PARTS, 0.0)
        for part in PARTS:
            if self.outcomes[0].utilisation[part] >= 0.02:
                relieved = self.scenario.run(relieved=part).measures()["makespan_s"]
                gains[part] = 1 - relieved / base if base else 0.0
        return gains

    @property
    def bottlenecks(self) -> list[str]:
        """The parts from the worst bottleneck on, by what relief gains (to 2 % of the makespan).

        The gain of a provider without limits counts half: nobody queues there, so of the slots and the sends that fill
        them the slots are named, unless more of them would hardly help. Where no relief gains a tenth, parts hold each
        other up (as many saturated loops as cores): those that are over 80 % busy themselves come first.
        """
        busy, gains = self.outcomes[0].utilisation, dict(self.reliefs)
        if not any(provider.guarded for provider in self.scenario.topology.providers.values()):
            gains["provider"] /= 2
        jointly = max(gains.values()) < 0.1

        def rank(part: str) -> tuple[bool, float, bool, int]:
            saturated = jointly and busy[part] > 0.8 and part not in ("slots", "provider")
            return not saturated, -round(gains[part] / 0.02), busy[part] < 0.02, TIES.index(part)

        return sorted(PARTS, key=rank)

    def to_dict(self) -> dict[str, Any]:
        """Settings, measures, bottleneck and utilisation as plain JSON types (a percentile of nobody is null).

        Of a stream or closed loop also `stable`, `backlog_jobs_per_s`, `verdict`, and `steady`: the measures of its
        steady part with `from_s`, `to_s`, `settled`, or null.
        """
        found = {**self.settings, **_plain(self.measures), "bottleneck": self.bottlenecks[0]}
        found["utilisation"] = self.utilisation
        if self.stream:
            backlog, steady = self.stream.backlog, self.steady
            found |= {"stable": self.stable, "backlog_jobs_per_s": backlog.jobs_per_s if backlog else 0.0}
            found |= {"verdict": self.verdict, "steady": None}
            if self.window and steady:
                found["steady"] = {**self.window._asdict(), **_plain(steady)}
        return found


def _named(part: str) -> str:
    return f"{part.replace('_', ' ')} {'are' if part in PLURAL else 'is'}"


def _plain(measures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    return {name: {k: None if v != v else v for k, v in found.items()} for name, found in measures.items()}
