"""Tables of other queues: read by the names of their columns, and refused in words where they cannot be used."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sim
from saqkit.errors import RunError, UsageError
from saqkit.spec import trace


def table(**changed: Any) -> pd.DataFrame:
    """Four executions of three jobs: `b` failed once."""
    columns = {
        "job": ["a", "b", "b", "c"],
        "type": ["mail", "mail", "mail", "report"],
        "enqueued": [100.0, 101.0, 101.0, 102.0],
        "started": [100.5, 101.0, 105.0, 102.0],
        "finished": [101.5, 102.0, 106.0, 112.0],
        "outcome": ["SUCCESS", "FAILURE", "SUCCESS", "success"],
        "worker": ["w1", "w2", "w1", "w2"],
    }
    return pd.DataFrame({name: values for name, values in {**columns, **changed}.items() if values is not None})


def test_three_columns_are_enough() -> None:
    found = sim.read_attempts(table()[["enqueued", "started", "finished"]])
    trace.check(found)
    assert dict(found.dtypes.astype(str))["outcome"] == "category"
    assert list(found["queued_at"]) == [0.0, 1.0, 1.0, 2.0]
    assert list(found["finished_at"]) == [1.5, 2.0, 6.0, 12.0]
    assert found["job"].nunique() == 4
    assert set(found["outcome"]) == {"done"}
    assert np.isnan(found.attrs["epoch"])


def test_attempts_outcomes_and_readiness_follow_from_the_rows() -> None:
    found = sim.read_attempts(table()).set_index(["job", "attempt"])
    assert found["outcome"].to_dict() == {("a", 1): "done", ("b", 1): "retry", ("b", 2): "done", ("c", 1): "done"}
    assert found.loc[("b", 2), "ready_at"] == 2.0  # when its first attempt had ended
    assert found.loc[("b", 2), "queued_at"] == 1.0
    assert set(found["job_type"]) == {"mail", "report"}
    assert found["users_done"].sum() == 3


def test_the_last_failure_of_a_job_is_its_death() -> None:
    found = sim.read_attempts(table(outcome=["ok", "failed", "failed", "aborted"])).set_index(["job", "attempt"])
    assert found["outcome"].to_dict() == {("a", 1): "done", ("b", 1): "retry", ("b", 2): "dead", ("c", 1): "cancelled"}


def test_files_names_and_clocks_are_those_of_the_team(tmp_path: Path) -> None:
    began = pd.Timestamp("2026-03-02T09:00:00+01:00")
    given = pd.DataFrame({
        "id": ["x", "y"],
        "created": [began.isoformat(), (began + pd.Timedelta(seconds=1.5)).isoformat()],
        "begin": [(began + pd.Timedelta(seconds=2)).tz_convert("UTC").isoformat().replace("+00:00", "Z")] * 2,
        "end": [(began + pd.Timedelta(seconds=4)).isoformat()] * 2,
    })  # fmt: skip
    names = {"job": "id", "enqueued": "created", "started": "begin", "finished": "end"}
    given.to_csv(tmp_path / "log.csv", index=False)
    given.to_parquet(tmp_path / "log.parquet")
    for name in ("log.csv", "log.parquet"):
        found = sim.read_attempts(tmp_path / name, columns=names)
        assert list(found["queued_at"]) == [0.0, 1.5]
        assert list(found["started_at"]) == [2.0, 2.0]
        assert found.attrs["epoch"] == began.timestamp()
    local = given.copy()
    for name in ("created", "begin", "end"):
        stamps = pd.to_datetime(given[name], utc=True, format="ISO8601")
        local[name] = stamps.dt.tz_convert("Europe/Berlin").dt.tz_localize(None)
    assert sim.read_attempts(local, names, clock="Europe/Berlin").attrs["epoch"] == began.timestamp()
    millis = table(**{name: table()[name] * 1000 + 1.7e12 for name in ("enqueued", "started", "finished")})
    found = sim.read_attempts(millis, clock="ms")
    assert found["finished_at"].max() == pytest.approx(12.0)
    assert found.attrs["epoch"] == pytest.approx(1.7e9 + 100)


def test_a_clock_that_is_off_can_be_corrected() -> None:
    skewed = table(started=[100.5, 98.0, 105.0, 99.0], finished=[101.5, 99.0, 106.0, 109.0])
    reason = (
        "two clocks: 2 of 4 rows start before they are enqueued; those of worker w2 by up to 3 s: correct its clock, "
        "or say offsets={'w2': 3}"
    )
    with pytest.raises(RunError, match=re.escape(reason)):
        sim.read_attempts(skewed)
    found = sim.read_attempts(skewed, offsets={"w2": 3.0})
    assert (found["started_at"] >= found["queued_at"]).all()
    with pytest.raises(UsageError, match='no worker "w9"'):
        sim.read_attempts(skewed, offsets={"w9": 3.0})


def test_rows_that_have_not_ended_are_left_out_and_noted() -> None:
    found = sim.read_attempts(table(finished=[101.5, 102.0, 106.0, np.nan]))
    assert len(found) == 3
    assert found.attrs["notes"] == ["1 of 4 rows have not started or not finished: left out",
                                    "1 rows are further attempts of their jobs, by their order"]  # fmt: skip
    inferred = sim.infer(found)
    assert inferred.notes[: len(found.attrs["notes"])] == tuple(found.attrs["notes"])


def _stamps(zones: list[str]) -> list[str]:
    return [f"2026-03-02T09:00:0{n}{zone}" for n, zone in enumerate(zones)]


NAN = float("nan")
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"started": None}, r"column started is missing; name yours: columns=\{'started': \.\.\.\}"),
    ({"started": None, "startd": [1.0] * 4}, 'did you mean "startd"'),
    ({"enqueued": [-5.0, 101, 101, 102]}, "row 0: enqueued is -5: a time is at least 0"),
    ({"finished": [101.5, 102, 104.0, 112]}, "row 2 finishes 1 s before it starts"),
    ({"finished": [101.5, 102, float("inf"), 112]}, "row 2: finished is inf"),
    ({"enqueued": _stamps(["Z"] * 4)}, "two clocks: started numbers, enqueued with a zone"),
    ({"enqueued": _stamps(["Z", "Z", "", "Z"])}, "enqueued: two clocks: some times are with a zone and some"),
    ({"enqueued": [1.7e12] * 4}, r'no seconds; say clock="ms"'),
    ({"enqueued": [100.0, NAN, 101, 102]}, "row 1: it finished, but has no time of enqueueing"),
    ({"finished": [NAN] * 4}, "none of 4 rows has started and finished"),
    ({"attempt": [1, 1, 1, 1]}, "row 2 is attempt 1 of job b once more"),
    ({"attempt": [1, 1, 2.5, 1]}, "row 2: attempt is 2.5: a whole number"),
    ({"outcome": ["SUCCES", "ok", "ok", "ok"]}, 'there is no outcome "succes" .did you mean "success"'),
    ({"priority": [1, 2, 9, 3]}, "row 2: priority is 9"),
    ({"users": [1, 1, -1, 1]}, "negative numbers of users"),
    ({"worker": None, "started": [100.5, 90.0, 105, 102], "finished": [101.5, 91.0, 106, 112]},
     "two clocks: 1 of 4 rows start before they are enqueued, row 1 by 11 s"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "reason"), WRONG)
def test_refuses_in_one_line_what_cannot_be_used(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(RunError, match=reason) as caught:
        sim.read_attempts(table(**changed))
    assert "\n" not in str(caught.value)


def test_refuses_files_and_words_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    (tmp_path / "noise.parquet").write_bytes(b"noise")
    with pytest.raises(RunError, match="the file is empty"):
        sim.read_attempts(tmp_path / "empty.csv")
    with pytest.raises(RunError, match="no table can be read"):
        sim.read_attempts(tmp_path / "noise.parquet")
    with pytest.raises(RunError, match=r"nowhere\.csv: no table can be read: No such file"):
        sim.read_attempts(tmp_path / "nowhere.csv")
    with pytest.raises(RunError, match="there are no rows"):
        sim.read_attempts(table().iloc[:0])
    with pytest.raises(UsageError, match=r'no "finish" .did you mean "finished"'):
        sim.read_attempts(table(), columns={"finish": "finished"})
    with pytest.raises(RunError, match=r'no column "typ" for type .did you mean "type"'):
        sim.read_attempts(table(), columns={"type": "typ"})
    with pytest.raises(UsageError, match="the times are numbers; their unit is one of s, ms, us, ns"):
        sim.read_attempts(table(), clock="UTC")
    stamps = table(**{name: _stamps([""] * 4) for name in ("enqueued", "started", "finished")})
    with pytest.raises(UsageError, match=r'no time zone .did you mean "Europe/Berlin"'):
        sim.read_attempts(stamps, clock="Europe/Berlim")
    zoned = table(**{name: _stamps(["+01:00"] * 4) for name in ("enqueued", "started", "finished")})
    with pytest.raises(UsageError, match="say their zone themselves"):
        sim.read_attempts(zoned, clock="UTC")
    with pytest.raises(RunError, match="finished: Time data yesterday"):
        sim.read_attempts(table(**{name: _stamps([""] * 4) for name in ("enqueued", "started")},
                                finished=["yesterday"] * 4))  # fmt: skip
