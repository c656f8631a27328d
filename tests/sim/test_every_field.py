"""Every field of a description acts in the model, in the stated direction, or says that it acts in real runs only."""

from __future__ import annotations

from functools import cache

import pandas as pd
import pytest
from every_field import BASE, FOR_READERS, REAL_ONLY, ROWS, SEED, Row, acts_in_real_only, described, fields

import sim
from saqkit.spec.showing import describe
from saqkit.spec.topology import Topology
from sim.fit.profile import Profile


def run(row: Row, changed: bool) -> pd.DataFrame:
    settings = {**row.base, **(row.change if changed else {})}
    return simulated(repr(settings), repr(dict(row.measured)))


@cache
def simulated(settings: str, measured: str) -> pd.DataFrame:
    """Rows that share a base share its run."""
    from ast import literal_eval

    topology, deployment, workload = described(literal_eval(settings))
    profile = Profile.parse({**Profile.nominal().to_dict(), "providers": literal_eval(measured)})
    return sim.predict(
        topology, deployment=deployment, workload=workload, profile=profile, seed=SEED, same_draw=True, replications=1
    ).attempts


def test_every_field_has_its_row() -> None:
    known = fields()
    both = {name for name, found in known.items() if not acts_in_real_only(found)} - FOR_READERS
    assert set(ROWS) == both, "a field that both engines have needs a row in tests/every_field.py"
    assert set(REAL_ONLY) == set(known) - both - FOR_READERS
    assert len(known) > 80, "reflection finds them all"


@pytest.mark.parametrize("name", ROWS)
def test_the_field_acts_in_the_stated_direction(name: str) -> None:
    row = ROWS[name]
    before, after = run(row, False), run(row, True)
    assert row.holds(before, after), (row.measure(before), row.measure(after))
    for frame in (before, after):
        assert frame["users_done"].sum() + frame["users_failed"].sum() > 0


def test_what_is_for_readers_is_shown_to_them() -> None:
    text = describe(Topology.parse(BASE))
    for name in FOR_READERS:
        assert BASE[name.partition(".")[2]] in text
