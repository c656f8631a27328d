"""A run is one file, from which it comes back exactly."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from saqkit.errors import RunError
from saqkit.spec.deployment import Deployment
from saqkit.spec.runs import Run
from saqkit.spec.topology import load
from saqkit.spec.trace import attempts_frame, steps_frame
from saqkit.spec.workload import Workload


@pytest.fixture
def run() -> Run:
    rows = [
        {
            "run": "r", "event": "1", "event_at": 0.1 + 0.2, "job": f"job:é{n}", "job_type": "notify", "queue": "q",
            "parent": "announce:1", "priority": 3, "tenant": "", "attempt": n, "crashes": 1, "users": 100,
            "users_done": 99, "users_failed": 1, "queued_at": -1e-9, "ready_at": 0.5, "taken_at": 1 / 3,
            "started_at": 0.7, "finished_at": 2.0 + n, "outcome": outcome, "worker": "w0", "host": "h",
            "cpu_s": 1e-300, "provider_s": 1e300, "database_s": float("nan"), "error": "ValueError" if n else "",
        }
        for n, outcome in enumerate(["done", "retry", "dead", "lost", "released", "cancelled"])
    ]  # fmt: skip
    steps = [{"job": "job:1", "attempt": 1, "user": 2**40, "step": "provider", "waited_s": 0.1, "took_s": 1 / 7}]
    return Run(
        topology=load("school-events"),
        deployment=Deployment(workers=2, concurrency={"notifications": 7}),
        workload=Workload.parse(
            {"arrivals": {"kind": "burst", "users": 10}, "faults": [{"kind": "kill_worker", "at_s": 1}]}
        ),
        seed=2**60 + 1,
        attempts=attempts_frame(rows),
        steps=steps_frame(steps),
        probe={"cpu_scale": 1 / 3},
        workers=({"worker": "w0", "pid": 1},),
        facts={"saq": "0.26"},
        disturbed=("load 3.5 from elsewhere",),
        name="a run",
    )


def test_a_run_comes_back_exactly_from_its_file(run: Run, tmp_path: Path) -> None:
    again = Run.load(run.save(tmp_path / "run.parquet"))
    pd.testing.assert_frame_equal(again.attempts, run.attempts, check_exact=True, check_categorical=True)
    pd.testing.assert_frame_equal(again.steps, run.steps, check_exact=True)
    for name in ("topology", "deployment", "workload", "seed", "probe", "workers", "facts", "disturbed", "name"):
        assert getattr(again, name) == getattr(run, name)
    assert repr(again) == repr(run)


def test_a_run_without_attempts_or_steps_comes_back_with_its_dtypes(run: Run, tmp_path: Path) -> None:
    empty = Run(run.topology, run.deployment, run.workload, 1, attempts_frame([]), steps_frame([]))
    again = Run.load(empty.save(tmp_path / "empty.parquet"))
    pd.testing.assert_frame_equal(again.attempts, empty.attempts)
    pd.testing.assert_frame_equal(again.steps, empty.steps)


def test_the_attempts_of_a_run_file_can_be_read_by_pandas_alone(run: Run, tmp_path: Path) -> None:
    frame = pd.read_parquet(run.save(tmp_path / "run.parquet"))
    pd.testing.assert_frame_equal(frame, run.attempts, check_exact=True)


def test_a_run_says_what_it_is_in_the_same_words_each_time(run: Run) -> None:
    assert repr(run) == (
        "Run(school-events: 594 users done, 6 failed, 6 attempts, 6.70 s, disturbed: load 3.5 from elsewhere)"
    )
    html = run._repr_html_()
    assert "makespan_s" in html
    assert "&#x27;" not in html


def test_what_is_no_run_is_refused_with_its_path(run: Run, tmp_path: Path) -> None:
    text, plain, cut = tmp_path / "text.parquet", tmp_path / "plain.parquet", tmp_path / "cut.parquet"
    text.write_text("hello")
    pd.DataFrame({"a": [1]}).to_parquet(plain)
    run.save(cut)
    cut.write_bytes(cut.read_bytes()[:-100])
    for path in (text, plain, cut, tmp_path / "missing.parquet", tmp_path):
        with pytest.raises(RunError) as caught:
            Run.load(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    damaged = tmp_path / "damaged.parquet"
    table = pq.read_table(run.save(damaged))
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"saqkit": b"{"}), damaged)
    with pytest.raises(RunError, match="the description inside is damaged"):
        Run.load(damaged)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"saqkit": b'{"format": 99}'}), damaged)
    with pytest.raises(RunError, match="format 99, this saqkit reads format 1"):
        Run.load(damaged)
    with pytest.raises(RunError, match="cannot be written"):
        run.save(tmp_path / "no folder" / "run.parquet")
