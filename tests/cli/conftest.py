"""A run that was really measured and a profile that was really fitted, made once by the command line itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from command_line import QUICK, saqkit


class Measured(NamedTuple):
    """What `saqkit measure` printed, and the file it wrote."""

    said: dict[str, Any]
    path: Path


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    path = tmp_path_factory.mktemp("runs") / "run.parquet"
    done = saqkit("measure", "school-events", "--users", "120", "--workers", "2", "--concurrency", "3", "--batch-size",
                  "20", "--seed", "7", *QUICK, "--out", str(path), "--json",
                  env={"REDIS_URL": "redis://127.0.0.1:1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Measured(json.loads(done.stdout), path)


@pytest.fixture(scope="session")
def profile(measured: Measured) -> Path:
    path = measured.path.with_name("profile.json")
    done = saqkit("calibrate", str(measured.path), "--out", str(path))
    assert done.returncode == 0, done.stderr
    return path
