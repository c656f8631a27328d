"""Starting, supervising and ending worker processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saqkit.errors import RunError
from saqkit.worker.process import Configuration

logger = logging.getLogger("saqkit")

_PATHS = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))
RESTART_PAUSE_S = 0.5
LONGEST_RESTART_PAUSE_S = 30.0
HEALTHY_S = 10.0
"""A process that lived so long was well: the next one's pause is the shortest again."""


class Launcher:
    """Keeps one process per configuration alive: what dies is started again, with back-off when it dies at once.

    `restarts` counts them. The processes end with the launcher, whatever ends it: each watches a pipe from it.
    """

    def __init__(self, configurations: Sequence[Configuration], folder: Path | None = None) -> None:
        self._own_folder = tempfile.TemporaryDirectory(prefix="saqkit-") if folder is None else None
        self.folder = folder or Path(self._own_folder.name if self._own_folder else "")
        self.configurations = list(configurations)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.restarts = 0
        self._pauses = [RESTART_PAUSE_S] * len(self.configurations)
        self._started: list[float] = [0.0] * len(self.configurations)
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start every process."""
        for number in range(len(self.configurations)):
            self.processes.append(self._spawn(number))

    def _spawn(self, number: int, again: bool = False) -> subprocess.Popen[bytes]:
        config = replace(self.configurations[number], again=again)
        self._started[number] = time.monotonic()
        told = self.folder / f"{config.name}.json"
        told.touch(mode=0o600)  # it holds addresses with passwords; the process removes it once it has read it
        told.write_text(config.to_json(), encoding="utf-8")
        with (self.folder / f"{config.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "saqkit.worker.process", str(told)],
                stdin=subprocess.PIPE,
                stdout=log if self._own_folder is None else 2,  # standard output is the launcher's own
                stderr=log if self._own_folder is None else 2,
                env={**os.environ, "SAQKIT_GUARDED": "1", "PYTHONPATH": os.pathsep.join(filter(None, _PATHS))},
                start_new_session=True,  # Ctrl-C is the launcher's to handle
            )

    async def _supervise(self) -> None:
        waits: dict[int, float] = {}
        while not self._stopping:
            await asyncio.sleep(0.05)
            for number, process in enumerate(self.processes):
                if number not in waits:
                    if process.poll() is not None:
                        waits[number] = time.monotonic() + self._pause(number)
                elif time.monotonic() >= waits[number]:
                    try:
                        self.processes[number] = self._spawn(number, again=True)
                    except OSError as error:  # no memory, no disk: it may be better in a moment
                        waits[number] = time.monotonic() + LONGEST_RESTART_PAUSE_S
                        logger.warning("worker %s cannot be started: %s", self.configurations[number].name, error)
                        continue
                    del waits[number]
                    _close(process)
                    self.restarts += 1

    def _pause(self, number: int) -> float:
        """How long a process that has just ended stays away; says so."""
        lived_s = time.monotonic() - self._started[number]
        pause_s = RESTART_PAUSE_S if lived_s > HEALTHY_S else self._pauses[number]
        self._pauses[number] = min(LONGEST_RESTART_PAUSE_S, pause_s * 2)
        logger.warning("worker %s ended after %.0f s (%s); it is started again in %.1f s",
                       self.configurations[number].name, lived_s, self._how(number), pause_s)  # fmt: skip
        return pause_s

    def _how(self, number: int) -> str:
        """How a process ended: its last words, the signal, or its exit code."""
        failed, code = self.report(number, "failed"), self.processes[number].returncode
        if failed is not None:
            return failed.read_text(encoding="utf-8")
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Wait until every process has reported; from then on those that die are started again.

        `RunError` with its last words if one ends or takes too long: what cannot start once is not tried for ever.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            reported = [self.report(number, "ready") is not None for number in range(len(self.processes))]
            if all(reported):
                self._supervisor = asyncio.create_task(self._supervise(), name="saqkit-supervisor")
                return
            for number, process in enumerate(self.processes):
                if process.poll() is not None:
                    raise RunError(
                        f"worker {self.configurations[number].name} did not start: {self.last_words(number)}"
                    )
            if time.monotonic() > deadline:
                raise RunError(
                    f"{reported.count(False)} of {len(reported)} workers are not ready after {timeout_s:g} s"
                )
            await asyncio.sleep(0.02)

    def report(self, number: int, kind: str) -> Path | None:
        """The file in which the current process of a worker reported `ready`, `done` or `failed`, None before."""
        path = self.folder / f"{self.configurations[number].name}.{self.processes[number].pid}.{kind}"
        return path if path.exists() else None

    def last_words(self, number: int) -> str:
        """What a process that ended said last: why it failed, else the last line of its log, else how it ended."""
        log = self.folder / f"{self.configurations[number].name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        if self.report(number, "failed") is None and lines:
            return lines[-1]
        return self._how(number)

    def kill(self, number: int) -> None:
        """SIGKILL a worker; the supervision starts it again, without the back-off of one that dies by itself."""
        self._pauses[number] = RESTART_PAUSE_S
        self.processes[number].kill()

    def terminate(self) -> None:
        """SIGTERM to all. Told for the second time, they give back at once what they run."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()

    async def stop(self, timeout_s: float = 35.0) -> list[int]:
        """SIGTERM to all, wait for them (then SIGKILL); returns their exit codes, -n of those that signal n ended.

        A process that SIGTERM met while it still started ends by it: it held nothing.
        """
        self._stopping = True
        try:
            if self._supervisor is not None:
                self._supervisor.cancel()
                await asyncio.wait([self._supervisor])
            self.terminate()
            deadline = time.monotonic() + timeout_s
            while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
        finally:  # also when this call is cancelled: none is left behind
            for process in self.processes:
                if process.poll() is None:
                    logger.warning("process %d does not stop and is killed; what it held comes back when its leases "
                                   "expire", process.pid)  # fmt: skip
                    process.kill()
                process.wait()
                _close(process)
            if self._own_folder is not None:
                self._own_folder.cleanup()
        return [process.returncode for process in self.processes]


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
