"""Worker processes that are killed and replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

from a_worker_of_chaos import Order

import saqkit

PROGRAM = Path(__file__).with_name("a_worker_of_chaos.py")


class Nursery:
    """Starts worker processes; all of them end with it."""

    def __init__(self, log: Path) -> None:
        self.log = log
        root = str(Path(saqkit.__file__).parents[1])  # the very code that this process tests
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("ab"),
            text=True, start_new_session=True, env={**os.environ, "PYTHONPATH": root},
        )  # fmt: skip

    def start(self, order: Order) -> int:
        """Start a worker and return its process id."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Crowd:
    """So many workers at a time. Each that is started has a number of its own, with which its faults are drawn.

    Of several orders they get one each, in turn. Faults happen and schedules fire as long as it is `armed`.
    """

    def __init__(self, nursery: Nursery, *orders: Order, workers: int = 4, seed: int = 1) -> None:
        self._nursery, self._random = nursery, Random(seed)
        self._places: list[tuple[Order, int]] = [(orders[n % len(orders)], 0) for n in range(workers)]
        self.kills = self.stops = self.started = 0
        self.armed = bool(orders[0].faults)

    @property
    def pids(self) -> list[int]:
        """The process ids of those that were there when it was last tended."""
        return [pid for _, pid in self._places if pid]

    def tend(self) -> None:
        """Replace the workers that are dead."""
        for place, (order, pid) in enumerate(self._places):
            if not pid or not lives(pid):
                faults = f"{order.faults},process={self.started}" if self.armed else ""
                told = replace(order, faults=faults, fires=order.fires and self.armed)
                self._places[place] = order, self._nursery.start(told)
                self.started += 1

    def kill(self, all_of_them: bool = False) -> None:
        """SIGKILL one of the workers."""
        for pid in self.pids if all_of_them else [self._random.choice(self.pids)]:
            self.kills += self._signal(pid, signal.SIGKILL)
            self._forget(pid)

    def stop_one(self) -> None:
        """SIGTERM to one of the workers."""
        self.stops += self._signal(self._random.choice(self.pids), signal.SIGTERM)

    def stop(self, within_s: float = 20) -> None:
        """SIGTERM to all, and wait until they are gone."""
        for pid in self.pids:
            self._signal(pid, signal.SIGTERM)
        until = time.monotonic() + within_s
        while alive := [pid for pid in self.pids if lives(pid)]:
            assert time.monotonic() < until, f"{len(alive)} workers do not end within {within_s} s of SIGTERM"
            time.sleep(0.01)
        for pid in self.pids:
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        self._places = [(order, 0 if one == pid else one) for order, one in self._places]

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> bool:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True
