"""The real command: in this process, where modules are loaded once, or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any
from unittest.mock import patch

from saqkit.cli import main

COMMAND = [sys.executable, "-m", "saqkit.cli"]
QUICK = ("--set", "providers.email.latency.mean_s=0.002", "--set", "queues.notifications.rate_limit=none")


def saqkit(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """What the command does here, told as if it had been a process."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, patch.dict(os.environ, env or {}):
        status = main(arguments)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def as_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


def answer(*arguments: str) -> Any:
    """What a command prints with --json; it must succeed and print nothing else."""
    done = saqkit(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def start(*arguments: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal starts it."""
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *arguments], stdout=pipe, stderr=pipe, text=True, bufsize=1, process_group=0)


def says(process: subprocess.Popen[str], word: str) -> str:
    """The line of standard error that holds `word`, waited for."""
    assert process.stderr is not None
    seen, patience = "", threading.Timer(30, process.kill)
    patience.start()
    try:
        while True:
            line = process.stderr.readline()
            assert line, f"it ended, or was ended after 30 s, without saying {word!r}, but said: {seen}"
            seen += line
            if word in line:
                return line
    finally:
        patience.cancel()


def wait_until(true: Callable[[], object], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
