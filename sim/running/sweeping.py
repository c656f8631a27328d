"""Carrying out a sweep: combinations shared out by joblib, what it will take told beforehand, results so far kept."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator, Iterable, Sequence
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING

from sim.analysis.statistics import LEAST
from sim.running.combination import Combination
from sim.running.replicating import Rules, expected_users, replicate
from sim.running.scenario import Scenario

if TYPE_CHECKING:
    from sim.prediction import Prediction

LARGE = 10_000
"""Combinations: a larger sweep is not started before somebody has agreed to what it will take."""
FIXED = 200  # users whose simulation costs as much as beginning a run
SPANS = ((86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


class Interrupted(KeyboardInterrupt):
    """A sweep was interrupted; `partial` is the `Prediction` of those combinations that were done by then.

    In an interactive session, after the fact: `sys.last_value.partial`.
    """

    def __init__(self, partial: Prediction, of: int) -> None:
        self.partial, self.of = partial, of
        super().__init__(f"{len(partial):,} of {of:,} combinations are done: they are in .partial of this exception")


def sweep(scenarios: Iterable[Scenario], rules: Rules, n_jobs: int | None) -> Generator[Combination, None, None]:
    """The combinations in order, each as soon as it and those before it are done; the same whatever `n_jobs` is.

    `n_jobs` is joblib's: None takes what `joblib.parallel_config` says, with its backend. A combination is one task.
    """
    if workers(n_jobs) == 1:
        yield from (replicate(scenario, rules) for scenario in scenarios)
        return
    from joblib import Parallel, delayed

    try:
        parallel = Parallel(n_jobs=n_jobs, return_as="generator")
    except ValueError:  # a backend (Ray's, multiprocessing) that returns whole lists only: some combinations at a time
        parallel, tasks = Parallel(n_jobs=n_jobs), iter(scenarios)
        while chunk := list(islice(tasks, 4 * workers(n_jobs))):
            yield from parallel(delayed(replicate)(scenario, rules) for scenario in chunk)
        return
    results = parallel(delayed(replicate)(scenario, rules) for scenario in scenarios)
    try:
        yield from (combination for combination in results)  # so that `results` is closed below, and not from here
    finally:
        with warnings.catch_warnings():  # that it cancels what is under way is what is wanted here
            warnings.simplefilter("ignore", UserWarning)
            results.close()


def workers(n_jobs: int | None) -> int:
    """How many processes or threads joblib would use."""
    if n_jobs == 1 or (n_jobs is None and "joblib" not in sys.modules):
        return 1
    from joblib import effective_n_jobs

    return int(effective_n_jobs(n_jobs))


def price(trial: Scenario, users: Sequence[int], each: int, rules: Rules, n_jobs: int | None) -> str:
    """What a sweep will take, in words: `each` combinations for every number in `users`, by a trial run of one."""
    trial.run()  # the first run also loads, or compiles
    began = perf_counter()
    trial.run()
    run_s = (perf_counter() - began) / (FIXED + expected_users(trial))
    once_s = run_s * each * sum(FIXED + n for n in users) / workers(n_jobs)
    fewest, most = (rules.replications,) * 2 if rules.replications else (min(LEAST, rules.most), rules.most)
    spans = [_span(fewest * once_s), _span(most * once_s)]
    at_once = f", {workers(n_jobs)} at once" if workers(n_jobs) > 1 else ""
    return f"{each * len(users):,} combinations take about {' to '.join(dict.fromkeys(spans))}{at_once}"


def _span(seconds: float) -> str:
    size, name = next((one for one in SPANS if seconds >= 2 * one[0]), SPANS[-1])
    return f"{seconds / size:,.0f} {name}"
