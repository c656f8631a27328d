"""Every command and every line of Python in the README, run as a reader would run it, and judged by its effect."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
FAST = {"providers.email.latency.mean_s": 0.004}  # the README's provider takes 75 ms a user: too long for a test

FEWER = "3000"  # instead of 100,000 users, of which the simulator does 100,000 a second, and many runs of them


def block(first_words: str) -> list[str]:
    """The lines, without comments, of the block that begins with `first_words`."""
    [text] = [text for _, text in BLOCKS if text.startswith(first_words)]
    return [line.split(" #")[0].strip() for line in text.splitlines() if line.strip()]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more}


def run(line: str, cwd: Path, **more: str) -> str:
    done = subprocess.run(
        line, shell=True, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"
    return done.stdout


@contextmanager
def running(line: str, cwd: Path, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that goes on until it is told to stop, as in a terminal of its own; it must end well."""
    with (cwd / "running.log").open("ab") as log:
        process = subprocess.Popen(f"exec {line}", shell=True, cwd=cwd, env=environment(**more), stderr=log, stdout=log)
    try:
        yield process
        assert process.poll() is None, (cwd / "running.log").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (cwd / "running.log").read_text()
    finally:
        process.kill()
        process.wait()


def wait_until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, f"waited 60 s for: {what}"
        time.sleep(0.05)


@pytest.fixture
def fast_topology(tmp_path: Path) -> str:
    """school-events with a fast provider, as a file."""
    text = (ROOT / "saqkit" / "topologies" / "school-events.toml").read_text(encoding="utf-8")
    path = tmp_path / "school-events-fast.toml"
    path.write_text(text.replace("mean_s = 0.075", f"mean_s = {FAST['providers.email.latency.mean_s']}"))
    return str(path)


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    """A folder with the repository's data in it; its embedded broker is stopped at the end."""
    shutil.copytree(ROOT / "data", tmp_path / "data")
    yield tmp_path
    run("saqkit broker stop", tmp_path)


def test_every_block_is_tested() -> None:
    starts = ("make demo", "import saqkit", "saqkit show", "saqkit users", "saqkit announce", "python -m")
    assert [next((start for start in starts if text.startswith(start)), text) for _, text in BLOCKS] == list(starts)


def test_the_two_commands_are_verbs_of_the_makefile() -> None:
    lines = block("make demo")
    assert lines == ["make demo", "make test"]
    steps = subprocess.run(["make", "-n", *["demo", "test"]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(r"saqkit demo\n.*pytest tests .*\n.*pytest --nbval", steps.stdout, re.DOTALL)


async def test_the_python_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    import saqkit
    from saqkit.spec.overriding import override

    load = saqkit.load
    monkeypatch.setattr(saqkit, "load", lambda name: override(load(name), FAST))
    namespace: dict[str, Any] = {}
    [text] = [text for language, text in BLOCKS if language == "python"]
    code = compile(text.replace("100_000", FEWER), "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, CodeType)
    waiting = eval(code, namespace)
    if waiting is not None:
        await waiting

    assert namespace["small"].measures()["users_done"] + namespace["small"].measures()["users_failed"] == 300
    assert namespace["run"].measures()["users_done"] + namespace["run"].measures()["users_failed"] == 5_000
    drains = [row["makespan_s"]["mean"] for row in namespace["forecast"].to_dicts()]
    assert len(drains) == 12
    assert all(0 < drain < 600 for drain in drains)


def test_the_command_lines(tmp_path: Path) -> None:
    said = {}
    for line in block("saqkit show"):
        faster = "".join(f" --set {key}={value}" for key, value in FAST.items()) if " measure " in line else ""
        line = line.replace("100000", FEWER)
        said[line.split()[1]] = run(line + faster + ("" if " show " in line else " --json"), tmp_path)

    assert "5 s, 25 s" in said["show"]
    assert (tmp_path / "small.parquet").exists()
    assert json.loads((tmp_path / "profile.json").read_text())["host"]["cores"] >= 1
    assert json.loads(said["measure"])["users_done"] + json.loads(said["measure"])["users_failed"] == 1000
    assert [(row["users"], row["workers"]) for row in json.loads(said["predict"])] == [
        (users, workers) for users in (1000, 10000, int(FEWER)) for workers in (1, 2, 4)
    ]
    assert json.loads(said["compare"])["in_sample"] is False
    assert json.loads(said["plan"])["feasible"] is True


def test_saq_serves_what_is_announced_in_a_second_terminal(workplace: Path, fast_topology: str) -> None:
    imports, serves = block("saqkit users import")
    assert "1000" in run(imports, workplace).replace(",", "")
    with running(serves, workplace, SAQKIT_TOPOLOGY=fast_topology):
        [announces] = block("saqkit announce")
        announced = json.loads(run(f"{announces} --json", workplace, SAQKIT_TOPOLOGY=fast_topology))
        assert announced["elapsed_ms"] < 1000
        assert announced["rows"] == announced["sent"] + announced["failed"] == 900


def test_emails_reach_the_loopback_sink(workplace: Path, fast_topology: str) -> None:
    run(block("saqkit users import")[0], workplace)
    listens, serves = block("python -m saqkit.testing")
    port = "2525"
    mails = workplace / "mails.jsonl"
    with (
        running(listens.replace(port, free := free_port()), workplace),
        running(f"env {serves.replace(port, free)}", workplace, SAQKIT_TOPOLOGY=fast_topology),
    ):
        run(f"{block('saqkit announce')[0]} --json", workplace, SAQKIT_TOPOLOGY=fast_topology)
        wait_until(lambda: len(mails.read_text().splitlines()) == 900, "900 emails in the sink's file")
    received = [json.loads(line) for line in mails.read_text().splitlines()]
    assert len({mail["message_id"] for mail in received}) == 900


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
