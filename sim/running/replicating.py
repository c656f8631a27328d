"""Replications of one combination: as many as were asked for, or until the mean is known well enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal, cast

import pandas as pd

from saqkit.errors import UsageError
from saqkit.spec import steady
from saqkit.spec.workload import ClosedLoop, Poisson, Profile, Scheduled, Workload
from sim.analysis.stability import Backlog, backlogs, worst
from sim.analysis.statistics import LEAST, enough
from sim.engine.outcome import Outcome
from sim.running.combination import Combination, Stream
from sim.running.scenario import Scenario

LONG = 50_000  # users: a longer stream is tried out before it is played
PILOTS, EVENTS = (20_000, 200_000), 10  # so many of its users, and at least so many events, are tried
Keep = Literal["attempts", "summary"]


@dataclass(frozen=True)
class Rules:
    """How many replications are run of each combination, what is kept, and whether bottlenecks are found at once.

    After `most_s` seconds no further replication begins, if there are two and no number was asked for.
    """

    replications: int | None
    precision: float
    most: int
    keep: Keep
    bottlenecks: bool
    most_s: float | None = None


@dataclass(frozen=True)
class Kept:
    """What `keep="summary"` keeps of an `Outcome`: everything but the attempts."""

    utilisation: Mapping[str, float]
    drained: bool
    ended_at_s: float
    wakes: float

    def attempts(self, replication: int = 0, run: str = "predicted") -> pd.DataFrame:
        """Refused: they are gone."""
        raise UsageError('the attempts were not kept: predict with keep="attempts" to have them')


def replicate(scenario: Scenario, rules: Rules) -> Combination:
    """One combination of a sweep.

    The mean that has to be known is the makespan's, or of a stream, closed loop or schedules, whose makespan is given,
    the latency's. A stream of more than 50,000 users is tried with its first 20,000 (near saturation 200,000); where
    they show that its backlog grows, that is the answer: what a longer run shows would depend on its length alone.
    """
    goes_on = isinstance(scenario.workload.arrivals, Poisson | Profile | ClosedLoop)
    watch = _Watch(scenario.workload) if goes_on else None
    if watch and isinstance(scenario.workload.arrivals, Poisson):
        users = expected_users(scenario)
        if users > LONG or scenario.workload.faults:
            pilot, outcome, watch.tried = _tried(scenario)
            if users > LONG and watch.tried and not watch.tried.stable:
                settings = scenario.settings(1, users)
                return Combination(settings, pilot, (_kept(outcome, rules),), (outcome.measures(),), watch.tried)
    outcomes, found = list[Outcome](), list[dict[str, float]]()
    timed = watch or isinstance(scenario.workload.arrivals, Scheduled)
    began, reached = perf_counter(), rules.replications is not None
    while len(outcomes) < (rules.replications or rules.most):
        if rules.most_s is not None and not reached and len(outcomes) > 1 and perf_counter() - began > rules.most_s:
            break
        outcome = scenario.run(len(outcomes))
        found.append(outcome.measures())
        if watch:
            watch.see(outcome.attempts())
        outcomes.append(_kept(outcome, rules))
        judged = "latency_mean_s" if timed and found[0]["users_done"] else "makespan_s"
        if rules.replications is None and enough([one[judged] for one in found], rules.precision):
            reached = True
            break
    stream = watch.result() if watch else None
    settings, missed = scenario.settings(len(outcomes)), "" if reached else judged
    combination = Combination(settings, scenario, tuple(outcomes), tuple(found), stream, missed)
    if rules.bottlenecks:
        _ = combination.reliefs, combination.verdict  # cached, and so carried along from another process
    return combination


def expected_users(scenario: Scenario) -> int:
    """How many users arrive: on average, where drawing them all to count them could take for ever."""
    arrivals = scenario.workload.arrivals
    if isinstance(arrivals, Poisson):
        return round(arrivals.rate_per_s * arrivals.duration_s * arrivals.users_per_event)
    return arrivals.users_per_day * arrivals.days if isinstance(arrivals, Profile) else scenario.users


def _tried(scenario: Scenario) -> tuple[Scenario, Outcome, Stream | None]:
    """The shorter trial of a stream without its faults, and how the backlog fares there, or in the longer one."""
    calm = scenario.workload.model_copy(update={"faults": ()})
    trials, grown = list[tuple[Scenario, Outcome]](), cast(Backlog | None, None)
    for users in PILOTS:
        pilot = scenario.beginning(users, EVENTS)
        trials.append((pilot, pilot.run()))
        grown = worst([backlogs(calm, trials[-1][1].attempts())])
        if not grown or not grown.undecided:
            break
    return *trials[0], Stream(grown, None, (), played=False) if grown else None


def _kept(outcome: Outcome, rules: Rules) -> Outcome:
    if rules.keep == "attempts":
        return outcome
    return cast(Outcome, Kept(outcome.utilisation, outcome.drained, outcome.ended_at_s, outcome.wakes))


class _Watch:
    """Sees the tables of a stream's replications go by: how backlogs grow, and what is steady.

    The first five say which part that is; only they are held, and only until then.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload, self.tried = workload, cast(Stream | None, None)
        self._grown: list[list[Backlog]] = []
        self._held: list[pd.DataFrame] = []
        self._window: steady.Window | None = None
        self._measured: list[dict[str, float]] = []

    def see(self, attempts: pd.DataFrame) -> None:
        self._grown.append(backlogs(self.workload, attempts))
        if self._window:
            self._measured.append(steady.measures(attempts, self._window))
        elif steady.is_steady(self.workload):
            self._held.append(attempts)
            if len(self._held) == LEAST:
                self._settle()

    def result(self) -> Stream | None:
        if self._held:
            self._settle()
        if self.tried and self.workload.faults:
            return replace(self.tried, window=None, played=True)
        if isinstance(self.workload.arrivals, ClosedLoop):
            return Stream(None, self._window, tuple(self._measured))
        grown = worst(self._grown)
        return Stream(grown, self._window, tuple(self._measured)) if grown else None

    def _settle(self) -> None:
        self._window = steady.window(self.workload, self._held)
        if self._window:
            self._measured = [steady.measures(attempts, self._window) for attempts in self._held]
        self._held = []
