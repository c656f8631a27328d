"""Every run that a test of the simulator makes to its end is checked: Little's law, jobs, users, slots, limits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from soundness import every_run_checked


@pytest.fixture(autouse=True)
def _sound() -> Iterator[None]:
    with every_run_checked():
        yield
