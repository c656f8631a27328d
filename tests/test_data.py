"""The files of `data/` are what `data/README.md` says they are."""

from __future__ import annotations

from pathlib import Path

import pytest

import saqkit
import sim

DATA = Path(__file__).parent.parent / "data"


def test_every_file_is_described() -> None:
    text = DATA.joinpath("README.md").read_text(encoding="utf-8")
    files = [str(path.relative_to(DATA)) for path in DATA.rglob("*") if path.is_file() and path.name != "README.md"]
    assert [name for name in files if f"`{name}`" not in text] == []
    assert len(files) >= 4


def test_the_recorded_run_is_whole_and_undisturbed() -> None:
    run = saqkit.Run.load(DATA / "runs" / "quickstart.parquet")
    found = run.measures()
    assert found["users_done"] + found["users_failed"] == 300
    assert found["attempts"] == 1 + 300 / 25
    assert run.disturbed == ()


def test_the_profile_is_the_one_that_the_recorded_run_gives() -> None:
    stored = sim.Profile.load(DATA / "profile-quickstart.json")
    fitted = sim.calibrate(DATA / "runs" / "quickstart.parquet")
    assert stored.runs == fitted.runs
    for name, part in fitted.job_types.items():
        for key, value in part:
            if key != "fan_out":
                assert getattr(stored.job_types[name], key).value == pytest.approx(value.value, rel=1e-6), (name, key)
    assert stored.host.cpu_scale.value == pytest.approx(fitted.host.cpu_scale.value, rel=1e-6)
