"""Every block of Python of docs/testing.md is a test suite that passes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PASSED = (3, 1, 1)


def test_every_block_is_run() -> None:
    assert len(BLOCKS) == len(PASSED)


@pytest.mark.parametrize(("number", "passed"), list(enumerate(PASSED)))
def test_a_block_passes_as_somebody_elses_suite(
    suite: Callable[..., subprocess.CompletedProcess[str]], number: int, passed: int
) -> None:
    done = suite(BLOCKS[number], "-p", "pytest_asyncio.plugin")
    assert f"{passed} passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
    assert "warning" not in done.stdout
