"""Starting, supervising and ending worker processes."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from saqkit.errors import RunError
from saqkit.worker.process import Configuration

logger = logging.getLogger("saqkit")

_PATHS = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))
RESTART_PAUSE_S = 0.5
LONGEST_RESTART_PAUSE_S = 30.0


class Launcher:
    """Keeps one process per configuration alive: what dies is started again, with back-off when it dies at once.

    The processes end with the launcher, whatever ends it: each watches a pipe from it.
    """

    def __init__(self, configurations: Sequence[Configuration], folder: Path | None = None) -> None:
        self._own_folder = tempfile.TemporaryDirectory(prefix="saqkit-") if folder is None else None
        self.folder = folder or Path(self._own_folder.name if self._own_folder else "")
        self.configurations = list(configurations)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._pauses = [RESTART_PAUSE_S] * len(self.configurations)
        self._started: list[float] = [0.0] * len(self.configurations)
        self._supervisor: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start every process and the supervision."""
        for number in range(len(self.configurations)):
            self.processes.append(self._spawn(number))
        self._supervisor = asyncio.create_task(self._supervise(), name="saqkit-supervisor")

    def _spawn(self, number: int) -> subprocess.Popen[bytes]:
        config = self.configurations[number]
        self._started[number] = time.monotonic()
        told = self.folder / f"{config.name}.json"
        told.touch(mode=0o600)  # it holds addresses with passwords; the process removes it once it has read it
        told.write_text(config.to_json(), encoding="utf-8")
        with (self.folder / f"{config.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "saqkit.worker.process", str(told)],
                stdin=subprocess.PIPE,
                stderr=log if self._own_folder is None else None,
                env={**os.environ, "SAQKIT_GUARDED": "1", "PYTHONPATH": os.pathsep.join(filter(None, _PATHS))},
                start_new_session=True,  # Ctrl-C is the launcher's to handle
            )

    async def _supervise(self) -> None:
        waits: dict[int, float] = {}
        while not self._stopping:
            await asyncio.sleep(0.05)
            for number, process in enumerate(self.processes):
                if number in waits:
                    if time.monotonic() >= waits[number]:
                        del waits[number]
                        _close(process)
                        self.processes[number] = self._spawn(number)
                elif process.poll() is not None:
                    lived_s = time.monotonic() - self._started[number]
                    pause_s = RESTART_PAUSE_S if lived_s > 10 else self._pauses[number]
                    self._pauses[number] = min(LONGEST_RESTART_PAUSE_S, pause_s * 2)
                    waits[number] = time.monotonic() + pause_s
                    logger.warning("worker %s ended with %d; it is started again in %.1f s",
                                   self.configurations[number].name, process.returncode, pause_s)  # fmt: skip

    async def ready(self, timeout_s: float = 60.0) -> None:
        """Wait until every process has reported; `RunError` with its last words if one ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            reported = [self.report(number, "ready") is not None for number in range(len(self.processes))]
            if all(reported):
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
        """The file in which the current process of a worker reported `ready` or `done`, None before."""
        path = self.folder / f"{self.configurations[number].name}.{self.processes[number].pid}.{kind}"
        return path if path.exists() else None

    def last_words(self, number: int) -> str:
        """The last line of a worker's log."""
        log = self.folder / f"{self.configurations[number].name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        return lines[-1] if lines else "it said nothing"

    def kill(self, number: int) -> None:
        """SIGKILL a worker; the supervision starts it again, without the back-off of one that dies by itself."""
        self._pauses[number] = RESTART_PAUSE_S
        self.processes[number].kill()

    async def stop(self, timeout_s: float = 35.0) -> list[int]:
        """SIGTERM to all, wait for them (then SIGKILL); returns their exit codes."""
        self._stopping = True
        try:
            if self._supervisor is not None:
                self._supervisor.cancel()
                await asyncio.wait([self._supervisor])
            for process in self.processes:
                if process.poll() is None:
                    process.terminate()
            deadline = time.monotonic() + timeout_s
            while any(process.poll() is None for process in self.processes) and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
        finally:  # also when this call is cancelled: none is left behind
            for process in self.processes:
                if process.poll() is None:
                    logger.warning("process %d does not stop and is killed", process.pid)
                    process.kill()
                process.wait()
                _close(process)
            if self._own_folder is not None:
                self._own_folder.cleanup()
        return [process.returncode for process in self.processes]


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
