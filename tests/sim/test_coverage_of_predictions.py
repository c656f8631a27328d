"""The binomial test that prediction intervals cover what they say, on made-up tables."""

from __future__ import annotations

from math import comb

import numpy as np
import pandas as pd
import pytest

from saqkit.errors import UsageError
from sim.analysis.coverage import coverage


def table(*cells: tuple[str, str, float, int]) -> pd.DataFrame:
    """Rows of (kind, measure, share inside, runs); a cell for each but those that repeat the kind."""
    rows = [
        {"kind": kind, "cell": f"{kind}-{n}", "measure": measure, "inside": inside, "runs": runs, "measured": 1.0,
         "lo": 0.9, "hi": 1.1}
        for n, (kind, measure, inside, runs) in enumerate(cells)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_the_p_values_are_those_of_the_binomial_distribution() -> None:
    shares = {"io": (2 / 3, 3), "loop": (1.0, 3), "core": (0.5, 4)}
    found = coverage(table(*[(kind, "makespan_s", *inside) for kind, inside in shares.items()]))
    assert (found.inside, found.total, found.cells, found.share) == (7, 10, 3, 0.7)
    chance = [comb(10, k) * 0.9**k * 0.1 ** (10 - k) for k in range(11)]
    assert found.p_covers_less == pytest.approx(sum(chance[:8]))
    assert found.p_two_sided == pytest.approx(sum(p for p in chance if p <= chance[7] * (1 + 1e-9)))
    assert found.lo < 0.7 < found.hi
    assert "10 runs are few" in str(found)


def test_one_measure_of_each_cell_counts_since_those_of_one_run_move_together() -> None:
    cells = [("io", "makespan_s", 1.0, 3), ("stream", "latency_mean_s", 0.0, 5)]
    full = pd.concat([table(*cells), table(*[(k, "latency_p95_s", 1 / n, n) for k, _, _, n in cells])])
    first = coverage(full)
    assert (first.inside, first.total, first.cells) == (3, 8, 2)
    assert "makespan_s, latency_mean_s" in first.note
    assert "not independent" in first.note
    named = coverage(full, "latency_p95_s")
    assert (named.inside, named.total, named.cells) == (2, 8, 2)
    by_class = coverage(full, {"io": "latency_p95_s", "stream": "latency_mean_s"})
    assert (by_class.inside, by_class.total) == (1, 8)
    assert coverage(full, "makespan_s").total == 3


def test_what_was_not_measured_or_not_predicted_does_not_count() -> None:
    full = table(("fault", "recovery_s", 0.0, 3), ("io", "makespan_s", 1.0, 3))
    full.loc[0, "measured"] = np.nan
    assert coverage(full).total == 3


def test_true_claims_pass_and_false_ones_do_not() -> None:
    """A test of 5 % may alarm falsely in 5 % of tables, and of 300 runs that cover 80 % it has to see nearly all."""
    draw = np.random.default_rng(7)

    def alarms(share: float) -> float:
        held = []
        for _ in range(200):
            inside = draw.binomial(3, share, 100) / 3
            held.append(coverage(table(*[("io", "makespan_s", float(one), 3) for one in inside])).holds())
        return 1 - float(np.mean(held))

    assert alarms(0.9) <= 0.10
    assert alarms(0.8) >= 0.95


def test_a_measure_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r'no measure "makespan" \(did you mean "makespan_s"\?\)'):
        coverage(table(("io", "makespan_s", 1.0, 3)), "makespan")
    with pytest.raises(UsageError, match="no cell has"):
        coverage(table(("io", "makespan_s", 1.0, 3)), {"stream": "makespan_s"})
