"""Which event loop the worker processes run on, and that they do their work on each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from saq.queue import JobError

from saqkit import load
from saqkit.errors import UsageError
from saqkit.queue.building import build_queues
from saqkit.worker.event_loop import loop_factory, loop_name
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration

TOPOLOGY = load("school-events")


def test_uvloop_is_taken_where_it_is_installed_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found.append(name) or object())
    assert (loop_name(), loop_name("uvloop"), loop_name("asyncio")) == ("uvloop", "uvloop", "asyncio")
    assert set(found) == {"uvloop"}
    monkeypatch.setenv("SAQKIT_LOOP", "asyncio")
    assert (loop_name(), loop_name("uvloop")) == ("asyncio", "asyncio")
    monkeypatch.setenv("SAQKIT_LOOP", "auto")
    assert loop_name("asyncio") == "uvloop"


def test_without_uvloop_it_is_asyncio_unless_uvloop_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert loop_name() == "asyncio"
    monkeypatch.setenv("SAQKIT_LOOP", "uvloop")
    with pytest.raises(UsageError, match="uvloop is not installed"):
        loop_name()


def test_a_loop_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAQKIT_LOOP", "trio")
    with pytest.raises(UsageError, match='there is no event loop "trio"'):
        loop_name()


@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
async def test_a_worker_serves_and_ends_on_each(name: str, redis_url: str, tmp_path: Path) -> None:
    if name == "uvloop":
        pytest.importorskip("uvloop")
    assert type(loop_factory(name)()).__module__.split(".")[0] == name
    config = Configuration(
        topology=TOPOLOGY.to_dict(), broker=redis_url, database=f"sqlite:///{tmp_path}/data.db",
        slots={"notifications": 2}, name="w", folder=str(tmp_path), loop=name,
    )  # fmt: skip
    launcher = Launcher([config], tmp_path)
    await launcher.start()
    queues = build_queues(TOPOLOGY, redis_url)
    try:
        await launcher.ready()
        ready = launcher.report(0, "ready")
        assert ready is not None
        assert json.loads(ready.read_text())["loop"] == name
        with pytest.raises(JobError, match="no_such_function"):
            await queues["notifications"].apply("no_such_function", timeout=20)
    finally:
        codes = await launcher.stop(20)
        for queue in queues.values():
            await queue.disconnect()
    assert codes == [0]
    assert launcher.report(0, "done") is not None
