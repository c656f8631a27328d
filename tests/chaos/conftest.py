"""Workers to kill, the seed of a run, and the audit table (printed by `audit_table.py` at the end)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accounting import Tell
from crowd import Nursery

from saqkit.broker import PrivateBroker


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where worker processes come from; what they log is in a file beside."""
    started = Nursery(tmp_path_factory.mktemp("nursery") / "workers.log")
    yield started
    started.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PrivateBroker]:
    """A server of its own, that can be started anew; its file is in the folder "server"."""
    started = PrivateBroker(folder=tmp_path / "server")
    yield started
    started.stop()


@pytest.fixture
def tell(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Tell:
    """Add a row to the audit table."""

    def add(row: dict[str, Any], hits: dict[str, int]) -> None:
        name = request.node.name.removeprefix("test_")
        record_property("audit", {"run": name, **row})
        record_property("hits", hits)

    return add


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say of a failing run how it is replayed."""
    outcome: Any = yield
    report = outcome.get_result()
    seed = getattr(item, "callspec", None) and item.callspec.params.get("seed")  # type: ignore[attr-defined]
    if report.failed and seed is not None:
        tier = "chaos" if item.get_closest_marker("chaos") else "not chaos"
        name = item.originalname  # type: ignore[attr-defined]
        place = Path(item.path).relative_to(item.config.rootpath)
        again = f"SAQKIT_TEST_SEED={seed} pytest {place} -k {name} -m '{tier}' -p no:xdist"
        report.sections.append(("replay", again))
