"""Running a test suite as another team has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the text of a test file by a pytest of its own, with none of our settings."""

    def run(text: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "test_theirs.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(tmp_path)]
        known = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
        known |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env={**known, **environ}
        )

    return run
