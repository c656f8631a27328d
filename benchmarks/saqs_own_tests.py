"""Does SAQ's own test suite pass with saqkit's queue? `python benchmarks/saqs_own_tests.py CHECKOUT [--stock]`

CHECKOUT is the folder of SAQ's repository, with `saq` and `tests` in it, of a version that saqkit works with (0.26).
Its test classes for the Redis queue, jobs, the worker and the web page are run as they are, but with
`saqkit.queue.queue.Queue` where they would make a `RedisQueue`, on a private server. Beside saqkit they need:

    pip install time-machine aiohttp aiohttp_basicauth starlette httpx 'psycopg[binary,pool]'

(PostgreSQL's driver because the modules import it; its tests are not run.) The class for SAQ's HTTP proxy, of which
some fail on SAQ's own queue too, runs with `--http`. About two minutes.

Prints how many tests of each class pass, and for each that differs why, with the clause of the contract. Ends with 1 if
another one differs, or if one that is listed here passes. `--stock` runs the same classes on SAQ's own queue, for
contrast; `--only NAME` those tests alone that have NAME in theirs.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
import time
import unittest
from pathlib import Path
from typing import Any

# Python puts this folder first on the path, where queue.py would hide the standard library's module `queue`.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

CLASSES = {
    "tests.test_queue": ["TestRedisQueue"],
    "tests.test_job": ["TestJobRedisQueue"],
    "tests.test_worker": ["TestWorkerRedisQueue"],
    "tests.web.test_aiohttp": ["TestAiohttpWeb"],
    "tests.web.test_starlette": ["TestStarletteWeb"],
}

PROXY = {"tests.test_worker": ["TestHttpRedis"]}

DIFFERS = {
    "TestRedisQueue.test_sweep": (
        "C3, C4",
        "puts an id nobody claimed on the list `active` and expects it swept, and running jobs swept by their "
        "timeout and heartbeat; here jobs are recovered when their lease expires, and never before",
    ),
    "TestRedisQueue.test_finish_ttl_neutral": (
        "C1",
        "reads the job under `job.id`; here it is a hash under the queue's hash tag, so that one script can move it",
    ),
    "TestWorkerRedisQueue.test_cron": (
        "C9",
        "moves the process's clock to noon and expects a cron job to start; here delays are on the server's clock",
    ),
}
"""What the contract changes: clause, and what the test expects instead."""

RACES = {
    "TestRedisQueue.test_map": (
        "a race in the test",
        "enqueues a key a second time and expects the first job's result; a worker may have finished that job between "
        "the two calls, and then, here as in SAQ's own queue, the key is free again",
    ),
}
"""Tests that may pass or not, on SAQ's own queue too."""


LONGEST_S = 30
"""A test that takes longer has failed."""


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {LONGEST_S} s")


class Recorder(unittest.TestResult):
    """What became of each test, by its class."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str]] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        signal.alarm(LONGEST_S)

    def stopTest(self, test: unittest.TestCase) -> None:
        signal.alarm(0)
        super().stopTest(test)

    def note(self, test: unittest.TestCase, outcome: str) -> None:
        self.found.setdefault(type(test).__name__, {}).setdefault(test._testMethodName, outcome)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.note(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.note(test, "skipped")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.note(test, f"{err[0].__name__}: {str(err[1]).strip().splitlines()[0] if str(err[1]) else ''}")

    addError = addFailure


def run(checkout: Path, url: str, stock: bool, only: str, http: bool) -> dict[str, dict[str, str]]:
    """Run the classes; returns the outcome ("passed", "skipped", or the error) of each test of each class."""
    sys.path.insert(0, str(checkout))
    helpers: Any = importlib.import_module("tests.helpers")
    if not Path(str(helpers.__file__)).is_relative_to(checkout):
        sys.exit(f"{checkout}: no checkout of SAQ's repository (tests/helpers.py is missing)")
    from redis import asyncio as aioredis
    from saq.queue.redis import RedisQueue

    from saqkit.queue.queue import Queue

    async def create(address: str = url, **options: Any) -> RedisQueue:
        queue = RedisQueue(aioredis.from_url(address), **options) if stock else Queue.from_url(address, **options)
        await queue.connect()
        await queue.redis.flushdb()
        return queue

    helpers.create_redis_queue = create  # before the test modules take it from here
    suite, recorder = unittest.TestSuite(), Recorder()
    for module, names in CLASSES.items():
        for name in [*names, *PROXY.get(module, [])] if http else names:
            case = vars(importlib.import_module(module))[name]
            tests: Any = unittest.defaultTestLoader.loadTestsFromTestCase(case)
            suite.addTests(test for test in tests if only in test.id())
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _too_long)
    suite.run(recorder)
    return recorder.found


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path, help="folder of SAQ's repository")
    parser.add_argument("--stock", action="store_true", help="run them on SAQ's own queue instead")
    parser.add_argument("--only", default="", help="tests whose name has this in it")
    parser.add_argument("--http", action="store_true", help="those of the HTTP proxy too")
    options = parser.parse_args()
    from saqkit.broker import private

    started = time.monotonic()
    with private() as server:
        found = run(options.checkout.resolve(), server.url, options.stock, options.only, options.http)
    import saq

    print(f"SAQ {saq.__version__}'s own tests on {'its own' if options.stock else 'our'} queue")
    print(f"\n{'class':<24}{'passed':>8}{'differ':>8}{'skipped':>9}")
    others: dict[str, str] = {}
    for name, tests in found.items():
        outcomes = list(tests.values())
        differ = {f"{name}.{test}": what for test, what in tests.items() if what not in ("passed", "skipped")}
        others |= differ
        print(f"{name:<24}{outcomes.count('passed'):>8}{len(differ):>8}{outcomes.count('skipped'):>9}")
    known = {} if options.stock else DIFFERS
    for test, what in others.items():
        clause, why = (known | RACES).get(test, ("not explained", what))
        print(f"\n{test} ({clause}): {why}")
    ran = {f"{name}.{test}" for name, tests in found.items() for test in tests}
    better = sorted((set(known) & ran) - set(others))
    for test in better:
        print(f"\n{test}: listed as different, but it passes")
    print(f"\n{time.monotonic() - started:.0f} s")
    return int(bool(better or set(others) - set(known) - set(RACES)))


if __name__ == "__main__":
    sys.exit(main())
