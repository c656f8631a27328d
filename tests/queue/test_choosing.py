"""The server takes the jobs that `saqkit.spec.choosing` says, in that order, whatever happens to them in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st

from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import FOLDER, digest, source
from saqkit.spec.choosing import Chooser, Waiting
from saqkit.spec.topology import RateLimit, RunningLimit, Taking
from saqkit.testing.time_travel import SCRIPT

LEASE_S = 3600.0
SLOTS = 1000
LIMITED = ("tenant", "job_type", "provider", "customer")
PROVIDERS = {"f": "post", "g": "sms"}

some_weights = st.sampled_from(
    [None, {"critical": 8, "high": 4, "normal": 2, "low": 1}, {"critical": 1, "high": 0.3, "normal": 3, "low": 0.7}]
)
some_rates = st.builds(
    RateLimit, limit=st.integers(1, 6), period_s=st.sampled_from([4.0, 10.0]), unit=st.sampled_from(["jobs", "users"])
)
some_limits = st.lists(
    st.builds(RunningLimit, key=st.sampled_from(LIMITED), limit=st.integers(1, 3)),
    max_size=2, unique_by=lambda limit: limit.key,
)  # fmt: skip
some_rules = st.builds(
    Taking,
    rate_limit=st.one_of(st.none(), st.none(), st.none(), some_rates),
    weights=some_weights,
    fairness=st.sampled_from(["none", "tenants"]),
    tenant_rate_limit=st.one_of(st.none(), some_rates),
    running_limits=some_limits.map(tuple),
)
a_job = st.fixed_dictionaries(
    {
        "level": st.integers(1, 4),
        "tenant": st.sampled_from(["", "a", "b", "c"]),
        "users": st.integers(1, 8),
        "function": st.sampled_from(["f", "g", "h"]),
        "customer": st.sampled_from([None, "x", 7, True, ["no", "value"]]),
        "by_meta": st.booleans(),
    }
)
ADVANCE = (FOLDER / "keys.lua").read_text(encoding="utf-8") + SCRIPT.read_text(encoding="utf-8")
KEYS = Queue.from_url("redis://nowhere", name="q").keys
SCRIPTS = ("enqueue", "take", "finish", "bury", "release", "retry", "cancel", "recover", "prioritise", "audit")
number = st.integers(0, 30)
a_step = st.one_of(
    st.tuples(st.just("enqueue"), st.lists(a_job, min_size=1, max_size=6)),
    st.tuples(st.just("enqueue"), st.lists(a_job, min_size=1, max_size=6)),
    st.tuples(st.just("take"), st.integers(1, 5), st.integers(0, 9).map(lambda n: n == 0)),
    st.tuples(st.just("take"), st.integers(1, 5), st.just(False)),
    st.tuples(st.just("end"), number, st.sampled_from(["finish", "release", "retry", "bury", "cancel", "lose"])),
    st.tuples(st.just("end"), number, st.just("finish")),
    st.tuples(st.just("cancel"), number),
    st.tuples(st.just("seize"), number),
    st.tuples(st.just("prioritise"), number, st.integers(1, 4)),
    st.tuples(st.just("rules"), some_rules),
    st.tuples(st.just("advance"), st.integers(1, 5)),
)


def _jobs(*of: tuple[int, str]) -> list[dict[str, Any]]:
    plain = {"users": 1, "function": "f", "customer": None, "by_meta": False}
    return [{"level": level, "tenant": tenant, **plain} for level, tenant in of]


# What leaves a tenant's window is forgotten also where the job of another is taken then.
LEFT_MEANWHILE = (
    Taking(weights={"critical": 8, "high": 4, "normal": 2, "low": 1},
           tenant_rate_limit=RateLimit(limit=2, period_s=4.0)),
    [("enqueue", _jobs((1, ""), (1, ""), (1, ""))), ("take", 1, False), ("advance", 1), ("enqueue", _jobs((2, "a"))),
     ("advance", 3), ("take", 1, False)],
)  # fmt: skip


class Twins:
    """Every step is done to a queue on a server and to a `Chooser`; whoever is taken must be the same."""

    def __init__(self, client: redis.Redis, taking: Taking) -> None:
        self.client, self.chooser = client, Chooser(Taking())
        self.become(taking)
        client.flushall()
        self.keys = KEYS
        for name in SCRIPTS:
            client.script_load(source(name))
        self.jobs: dict[str, Waiting] = {}
        self.tokens: dict[str, bytes] = {}
        self.travelled_s = self.places = self.requests = 0

    def run(self, name: str, *args: Any) -> Any:
        pipe = self.client.pipeline(transaction=False)
        pipe.evalsha(digest(name), 2, *self.keys, *args)
        pipe.evalsha(digest("audit"), 2, *self.keys)
        said, (_, _, _, _, _, *problems) = pipe.execute()
        assert problems == [], (name, args, problems)
        return said

    def words(self, free: int, who: str, key: str = "") -> tuple[Any, ...]:
        """What a process says that was started with the present rules."""
        self.requests += 1
        rate = self.rules.rate_limit
        limit = (rate.limit, rate.period_s, rate.unit) if rate else (0, 1, "jobs")
        return (free, "w", LEASE_S, *limit, who, self.requests, key, 0.2, self.told)

    def place(self) -> int:
        self.places += 1
        return self.places

    # --- steps -------------------------------------------------------------------------------------------------------

    def enqueue(self, jobs: Sequence[dict[str, Any]]) -> None:
        args: list[Any] = []
        for job in jobs:
            key, place, customer = f"k{self.places}", self.place(), job["customer"]
            body: dict[str, Any] = {"function": job["function"], "key": key, "kwargs": {}, "meta": {}}
            if job["tenant"]:
                body["meta"]["tenant"] = job["tenant"]
            if customer is not None:
                body["meta" if job["by_meta"] else "kwargs"]["customer"] = customer
            values = {"job_type": job["function"]}
            if isinstance(customer, str | int):
                values["customer"] = str(customer).lower()
            if job["function"] in PROVIDERS:
                values["provider"] = PROVIDERS[job["function"]]
            self.jobs[key] = Waiting(key, place, job["level"], job["tenant"], job["users"], values)
            self.chooser.join(self.jobs[key])
            args += (key, json.dumps(body), job["level"], 0, job["users"], 0)
        self.requests += 1
        assert self.run("enqueue", 0.2, f"call{self.requests}", 0, *args) == [1] * len(jobs)

    def take(self, free: int, lost: bool) -> None:
        if self.rules != self.chooser.taking:
            self.chooser.change(self.rules)
        words = self.words(free, "me")
        at, _, blocked_s, *rows = self.run("take", *words)
        if lost:
            assert [row[:3] for row in self.run("take", *words)[3:]] == [row[:3] for row in rows]
        taken = [row[0].decode() for row in rows]
        self.tokens |= {row[0].decode(): row[1] for row in rows}
        now_s = float(at) + self.travelled_s
        expected: list[str] = []
        while len(expected) < free and (key := self.chooser.next(now_s)) is not None:
            expected.append(key)
        assert taken == expected
        if len(taken) < free:
            opens_s = self.chooser.opens_s
            if opens_s is None:
                assert float(blocked_s) == -1
            elif self.rules.rate_limit is None:  # else whichever limit opens first
                assert abs(now_s + float(blocked_s) - opens_s) < 1e-4

    def end(self, n: int, how: str) -> None:
        running = sorted(self.tokens)
        if not running:
            return
        key = running[n % len(running)]
        token, body, old = self.tokens.pop(key), self.client.hget(f"{self.keys[1]}{key}", "body"), self.jobs[key]
        match how:
            case "finish":
                self.run("finish", key, token, body, 600, "")
            case "bury":
                self.run("bury", key, token, body, "", "")
            case "release":
                self.run("release", key, token, "", "")
            case "retry":
                self.run("retry", 0.2, key, token, body, 0, "")
            case "cancel":
                self.run("cancel", key, "no", -1, "", "{}", 0)
            case "lose":
                self.client.zadd(f"{self.keys[0]}leases", {key: 1})
                assert self.run("recover", 99, LEASE_S) == [key.encode()]
        self.chooser.ended(key)
        if how in ("release", "lose"):
            self.chooser.join(old)
        elif how == "retry":
            self.jobs[key] = replace(old, place=self.place())
            self.chooser.join(self.jobs[key])

    def waiting(self, n: int) -> str | None:
        keys = [job.key for job in self.chooser.waiting()]
        return keys[n % len(keys)] if keys else None

    def cancel(self, n: int) -> None:
        if key := self.waiting(n):
            assert self.run("cancel", key, "no", -1, "", "{}", 0) == [1]
            self.chooser.leave(key)

    def seize(self, n: int) -> None:
        """Who takes a job by its name asks no limit, but counts for those of running jobs."""
        if (key := self.waiting(n)) and self.rules == self.chooser.taking:
            (row,) = self.run("take", *self.words(1, "other", key))[3:]
            self.tokens[key] = row[1]
            job = self.chooser.leave(key)
            assert job is not None
            self.chooser.begun(job)

    def prioritise(self, n: int, level: int) -> None:
        if key := self.waiting(n):
            assert self.run("prioritise", key, level) == [1, 1]
            if self.jobs[key].level != level:
                self.chooser.leave(key)
                self.jobs[key] = replace(self.jobs[key], level=level, place=self.place())
                self.chooser.join(self.jobs[key])

    def become(self, rules: Taking) -> None:
        """Processes are started anew, with other rules."""
        fields = {name: getattr(rules, name) for name in Taking.model_fields}
        self.rules = rules
        self.told = Queue.from_url("redis://nowhere", name="q", providers=PROVIDERS, **fields).rules

    def advance(self, seconds: int) -> None:
        self.client.eval(ADVANCE, 2, *self.keys, f"{seconds}")
        self.travelled_s += seconds


@pytest.mark.parametrize("examples", [100, pytest.param(1_000, marks=pytest.mark.chaos)])
@pytest.mark.timeout(900)
def test_the_server_takes_what_the_rules_say(redis_url: str, examples: int) -> None:
    many = {"taken": 0, "held back": 0}
    with redis.Redis.from_url(redis_url) as client:

        @settings(max_examples=examples, deadline=None, database=None, derandomize=examples == 100,
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @example(*LEFT_MEANWHILE)
        @given(some_rules, st.lists(a_step, min_size=20, max_size=50))
        def follow(taking: Taking, steps: list[tuple[Any, ...]]) -> None:
            twins, said = Twins(client, taking), []
            names: dict[str, Callable[..., None]] = {"rules": twins.become}
            try:
                for name, *args in [*steps, ("take", SLOTS, False)]:
                    said.append(f"{name} {args}")
                    names.get(name, getattr(twins, name, None))(*args)  # type: ignore[misc]
            except AssertionError:
                note("\n".join([repr(taking), *said]))
                raise
            many["taken"] += len(twins.tokens)
            many["held back"] += len(list(twins.chooser.waiting()))

        follow()
    assert many["taken"] > 500, many
    assert many["held back"] > 500, many
