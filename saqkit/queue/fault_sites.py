"""Named fault sites: between every two calls to the broker, where a test loses a reply or stops or kills the process.

Off unless the environment has `SAQKIT_FAULTS`; a site then costs one test of a global:

    if fault_sites.armed:
        fault_sites.armed.at("take.after")

`SAQKIT_FAULTS` is a list of settings, such as `seed=7,rate=0.02,actions=lose|exit,only=finish.*|take.after,log=hits`:

| setting   | default | means                                                                                   |
|-----------|---------|-----------------------------------------------------------------------------------------|
| `seed`    | 0       | of the decisions                                                                        |
| `process` | 0       | number of this process (not its pid): processes with one seed and two numbers differ    |
| `rate`    | 0.01    | probability of a fault at each visit                                                    |
| `actions` | all     | of `lose`, `sleep`, `exit`, `kill` (see `Action`); drawn evenly from those a site allows |
| `only`    | `*`     | patterns of the sites at which faults happen                                            |
| `most`    | 0       | faults at a site in this process, 0 for any number                                      |
| `sleep_s` | 1.5     | how long `sleep` takes; choose it longer than a lease                                   |
| `log`     | none    | a file to which every visit is appended before anything happens (see `tally`)           |

**What replays.** Whether the n-th visit of a site meets a fault, and which, is a function of (seed, process, site, n)
and of nothing else. How many visits there are and how those of several sites, threads and processes interleave is up
to clocks and the scheduler. So a run with `rate=1,most=1` of one site replays exactly; a long run with its seed meets
the same faults at the same visits of each process, but perhaps while other jobs are under way.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from random import Random
from typing import Literal, get_args

from redis.exceptions import ConnectionError

from saqkit.errors import UsageError

VARIABLE = "SAQKIT_FAULTS"

Action = Literal["lose", "sleep", "exit", "kill"]
"""`lose`: the connection breaks here (before: nothing was sent; after: done, but the reply is lost). `sleep`: the
process stands still, the renewal of its leases too (at `renew.*`: only that). `exit`: it ends at once. `kill`: SIGKILL.
"""

ACTIONS: tuple[Action, ...] = get_args(Action)

_CALLS = {
    "wake": "the blocking wait for something to take",
    "look": "reading stored jobs",
    "count": "counting",
    "info": "telling the web page that a worker lives",
}
_MOMENTS = {
    "job.claimed": "a slot has its job, the function has not begun",
    "job.effect": "the attempt is over, nothing has been told of it",
    "listen.heard": "a change has been heard of",
}


@cache
def sites() -> dict[str, str]:
    """Every site with its meaning: `<script>.before` and `.after` of each script, the same of other calls, moments."""
    shared = ("keys", "lines", "choosing", "following")
    folder = Path(__file__).parent / "scripts"
    scripts = sorted(path.stem for path in folder.glob("*.lua") if path.stem not in shared)
    calls = {**{name: f"the script {name}.lua" for name in scripts}, **_CALLS}
    found = {}
    for name, what in calls.items():
        found[f"{name}.before"] = f"{what}: not sent yet"
        found[f"{name}.after"] = f"{what}: the server has done it, the reply is not known yet"
    return {**found, **_MOMENTS}


@dataclass
class Faults:
    """The faults of a process; the fields are the settings above."""

    seed: int = 0
    process: int = 0
    rate: float = 0.01
    actions: tuple[Action, ...] = ACTIONS
    only: tuple[str, ...] = ("*",)
    most: int = 0
    sleep_s: float = 1.5
    log: str = ""
    _visits: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _hits: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _still_until: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        _require(0 <= self.rate <= 1, f"rate={self.rate:g}", "a probability from 0 to 1")
        _require(self.sleep_s >= 0, f"sleep_s={self.sleep_s:g}", "seconds, 0 or more")
        _require(self.most >= 0, f"most={self.most}", "0 or more")
        for action in self.actions:
            _require(action in ACTIONS, f"actions={action}", f"some of {'|'.join(ACTIONS)}")
        for pattern in self.only:
            known = any(fnmatchcase(site, pattern) for site in sites())
            _require(known, f"only={pattern}", f"patterns of sites, such as {', '.join(list(sites())[:3])}, …")
        try:
            self._file = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if self.log else -1
        except OSError as error:
            _require(False, f"log={self.log} ({error.strerror})", "a file that can be written")

    def at(self, site: str) -> None:
        """Visit a site: do nothing, or what the seed says. Raises redis-py's `ConnectionError` for `lose`."""
        if site == "renew.before":
            time.sleep(max(0.0, self._still_until - time.monotonic()))
        with self._lock:
            self._visits[site] += 1
            action = self.decide(site, self._visits[site])
            if self.most and self._hits[site] >= self.most:
                action = None
            self._hits[site] += action is not None
        if self._file >= 0:
            os.write(self._file, f"{site} {action or '-'} {self.process}\n".encode())
        if action == "lose":
            raise ConnectionError(f"fault at {site}")
        if action == "sleep":
            if not site.startswith("renew."):
                self._still_until = time.monotonic() + self.sleep_s
            time.sleep(self.sleep_s)
        elif action == "exit":
            os._exit(70)
        elif action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def decide(self, site: str, visit: int) -> Action | None:
        """What the n-th visit (from 1) of a site meets."""
        if not any(fnmatchcase(site, pattern) for pattern in self.only):
            return None
        actions = [action for action in self.actions if action != "lose" or site not in _MOMENTS]
        draws = Random(f"{self.seed} {self.process} {site} {visit}")
        return draws.choice(actions) if draws.random() < self.rate and actions else None


def parse(text: str) -> Faults | None:
    """The faults that a value of `SAQKIT_FAULTS` asks for, None for an empty one. Raises `UsageError`."""
    given: dict[str, object] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        kind = _KINDS.get(name)
        _require(bool(equals) and kind is not None, part, f"NAME=VALUE with a name of {', '.join(_KINDS)}")
        assert kind is not None
        try:
            given[name] = tuple(value.split("|")) if kind is tuple else kind(value)
        except ValueError:
            _require(False, part, "a number")
    return Faults(**given) if given else None  # type: ignore[arg-type]  # each value has just been made of its kind


def tally(log: Path) -> dict[str, Counter[str]]:
    """Of each site in a log: how often it was visited ("visits") and each action happened, over all processes."""
    found: dict[str, Counter[str]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        site, action, _ = line.split()
        counts = found.setdefault(site, Counter())
        counts["visits"] += 1
        if action != "-":
            counts[action] += 1
    return found


_KINDS: dict[str, type] = {"seed": int, "process": int, "rate": float, "actions": tuple, "only": tuple, "most": int,
                           "sleep_s": float, "log": str}  # fmt: skip


def _require(right: bool, what: str, instead: str) -> None:
    if not right:
        raise UsageError(f"{VARIABLE}: {what}: give {instead}")


armed: Faults | None = parse(os.environ.get(VARIABLE, ""))
