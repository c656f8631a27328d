"""The operations guide is run: the commands of each block in order, and what they say is what the page says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import COMMAND, saqkit, wait_until

from saqkit.app.announcing import Announcer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations_guide.md").read_text(encoding="utf-8")
BLOCKS = [
    (re.findall(r"^#+ (.*)$", PAGE[: found.start()], re.MULTILINE)[-1], found[1])
    for found in re.finditer(r"```console\n(.*?)```", PAGE, re.DOTALL)
]


class Terminal:
    """As much of a shell as the page uses: variables before a command, `2> FILE`, `&`, `kill %1`, `grep`, `until`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []

    def run(self, line: str) -> str:
        """What a line says on both outputs."""
        if found := re.fullmatch(r"until (.*) \| grep (\S+); do sleep 0\.1; done", line):
            wait_until(lambda: found[2] in self.run(found[1]))
            return ""
        if line == "kill %1":
            end(self.workers.pop())
            return ""
        words = shlex.split(line.removesuffix(" &"))
        environ: dict[str, str] = {}
        while "=" in words[0]:
            name, _, environ[name] = words.pop(0).partition("=")
        if words[0] == "grep":
            lines = (self.folder / words[2]).read_text(encoding="utf-8").splitlines()
            return "\n".join(line for line in lines if words[1] in line)
        assert words[0] == "saqkit", f"nobody here knows how to run {line}"
        if not line.endswith(" &"):
            done = saqkit(*words[1:], env=environ)
            return done.stdout + done.stderr
        log = self.folder / (words[words.index("2>") + 1] if "2>" in words else f"{len(self.workers)}.log")
        words = words[: words.index("2>")] if "2>" in words else words
        with log.open("wb") as out:
            process = subprocess.Popen([*COMMAND, *words[1:]], env={**os.environ, **environ}, stdout=out, stderr=out)
        self.workers.append(process)
        wait_until(lambda: "ready: " in log.read_text(encoding="utf-8") or process.poll() is not None)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        return ""


def end(worker: subprocess.Popen[bytes]) -> None:
    worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(5)
    except subprocess.TimeoutExpired:
        worker.send_signal(signal.SIGTERM)  # what runs is given back at once
        worker.wait(30)


@pytest.fixture
def terminal(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'data.db'}")
    (tmp_path / "data").symlink_to(ROOT / "data")
    # On a crowded machine the broker may need longer than an announcement has patience: then the relay would do it.
    monkeypatch.setitem(Announcer.announce.__kwdefaults__, "patience_s", 20.0)
    found = Terminal(tmp_path)
    yield found
    for worker in found.workers:
        end(worker)


def pattern(expected: list[str]) -> str:
    """`…` is any text of a line, and alone in a line any lines; how many spaces there are is all the same."""
    parts = []
    for line in expected:
        if line.strip() == "…":
            parts.append(r"(?:.*\n)*")
        else:
            parts.append(re.escape(squeezed(line)).replace("…", ".*") + r"\n")
    return "".join(parts)


def squeezed(text: str) -> str:
    return re.sub(" +", " ", text).strip(" ")


def shown(text: str) -> str:
    return "".join(f"{squeezed(line)}\n" for line in text.rstrip("\n").splitlines())


@pytest.mark.row("000.23", "001.15")
@pytest.mark.parametrize(("title", "block"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_what_the_guide_shows_is_so(terminal: Terminal, title: str, block: str) -> None:
    steps: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    for command, expected in steps:
        said = shown(terminal.run(command))
        assert re.fullmatch(pattern(expected), said), f"$ {command}\n{said}"


def test_every_entry_of_troubleshooting_has_a_block_that_is_run() -> None:
    entries = re.findall(r"^### (.*)$", PAGE.partition("## Troubleshooting")[2], re.MULTILINE)
    assert len(entries) >= 10
    assert set(entries) <= {title for title, _ in BLOCKS}


@pytest.mark.row("001.19")
def test_the_checklist_has_ten_items_each_with_how_it_is_verified() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \| (.+) \|$", PAGE.partition("## Before production")[2], re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 11))
    assert all(verified for _, _, verified in rows)


@pytest.mark.parametrize(
    ("expected", "said", "same"),
    [
        (["a  …", "…"], "a 12\nb\nc\n", True),
        (["a …"], "a 12\nb\n", False),
        (["…", "c"], "c\n", True),
        (["a.c"], "abc\n", False),
        ([], "", True),
        ([], "a\n", False),
    ],
)
def test_how_what_is_shown_is_compared(expected: list[str], said: str, same: bool) -> None:
    assert bool(re.fullmatch(pattern(expected), said)) is same
