"""The parts that jobs compete for, each alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import simpy
from hypothesis import given
from hypothesis import strategies as st

from saqkit.spec.topology import RateLimit
from sim.engine.parts import Broker, Database, Host, LedgerWriter, Loop, Window


def loop_of(env: simpy.Environment, host: Host | None = None, **settings: float) -> Loop:
    return Loop(env, host or Host(1, 1.0, 1), settings.get("resolution_s", 0.001), settings.get("overshoot_s", 0.0))


def test_a_timer_is_rounded_up_to_whole_milliseconds_of_the_select_call() -> None:
    env, fired = simpy.Environment(initial_time=0.0004), []
    loop = loop_of(env, overshoot_s=0.0001)
    loop.at(0.0104, 0.0, lambda: fired.append(env.now))
    loop.at(0.0301, 0.0, lambda: fired.append(env.now))
    env.run()
    assert fired == pytest.approx([0.0105, 0.0306])


def test_timers_that_are_due_by_a_wake_share_it() -> None:
    env, fired = simpy.Environment(), []
    loop = loop_of(env)
    for due_s in (0.0101, 0.0105, 0.0109, 0.0115):
        loop.at(due_s, 0.0, lambda: fired.append(env.now))
    env.run()
    assert fired == pytest.approx([0.011, 0.011, 0.011, 0.012])
    assert loop.wakes == pytest.approx(11 / 12 + 1 / 2), "two, after 11 ms of sleep and after one"


def test_a_loop_does_one_thing_at_a_time_in_order() -> None:
    env, done = simpy.Environment(), []
    loop = loop_of(env)
    for name in "abc":
        loop.soon(0.010, lambda name=name: done.append((name, env.now)))  # type: ignore[misc]
    loop.at(0.005, 0.001, lambda: done.append(("timer", env.now)))
    env.run()
    assert [name for name, _ in done] == ["a", "b", "c", "timer"]
    assert [at for _, at in done] == pytest.approx([0.010, 0.020, 0.030, 0.031])
    assert loop.busy_s == pytest.approx(0.031)


def test_a_reply_wakes_a_sleeping_loop_at_once_and_a_wake_costs_extra() -> None:
    env, done = simpy.Environment(), []
    loop = Loop(env, Host(1, 1.0, 1), 0.001, 0.0, cold_s=0.002)
    loop.at(1.0, 0.0, lambda: done.append(env.now))
    env.timeout(0.5).callbacks.append(lambda _: loop.soon(0.001, lambda: done.append(env.now)))
    env.timeout(0.5).callbacks.append(lambda _: loop.soon(0.001, lambda: done.append(env.now)))
    env.run()
    first = 0.5 + 0.002 * 500 / 501 + 0.001  # after half a second of sleep nearly all that a cold start costs
    last = first + 0.001 + 0.497 + 0.002 * 497 / 498  # it fell asleep between two milliseconds
    assert done == pytest.approx([first, first + 0.001, last])


def test_a_timer_whose_owner_is_over_never_fires() -> None:
    class Owner:
        over = False

    env, fired, owner = simpy.Environment(), [], Owner()
    loop = loop_of(env)
    loop.at(0.5, 0.0, lambda: fired.append(env.now), owner)
    loop.at(1.0, 0.0, lambda: fired.append(env.now))
    owner.over = True
    env.run()
    assert fired == pytest.approx([1.0])


def test_more_runnable_processes_than_cores_share_them() -> None:
    host = Host(cores=2, crowded=1.5, processes=4)
    assert [host.begin(1.0) for _ in range(4)] == pytest.approx([1.0, 1.5, 2.25, 3.0])
    for _ in range(4):
        host.end()
    assert host.begin(1.0) == 1.0


def test_the_broker_serves_in_order_and_not_while_it_is_down() -> None:
    env, log = simpy.Environment(), []
    broker = Broker(env, wire_s=0.002, cpu_s=0.010, job_cpu_s=0.0)
    broker.down = [(0.5, 2.0)]
    for name in "ab":
        broker.call(lambda name=name: log.append((name, env.now)), lambda _: None)  # type: ignore[misc]
    env.timeout(0.6).callbacks.append(lambda _: broker.call(lambda: env.now, lambda at: log.append(("c", at))))
    env.run()
    assert [name for name, _ in log] == ["a", "b", "c"]
    assert [at for _, at in log] == pytest.approx([0.011, 0.021, 2.010])


def test_the_database_has_one_writer_and_any_number_of_readers() -> None:
    env, done, host = simpy.Environment(), [], Host(2, 1.0, 1)
    loop, database = loop_of(env, host), Database(env)
    for _ in range(3):
        database.write(0.1, 0.0, 2, loop, lambda: done.append(env.now))
        database.read(0.05, loop, lambda: done.append(env.now))
    env.run()
    assert done == pytest.approx([0.05, 0.05, 0.05, 0.1, 0.2, 0.3])
    assert host.core_s == pytest.approx(0.3)


def test_a_transaction_takes_its_share_of_the_cores() -> None:
    env, done, host = simpy.Environment(), [], Host(1, 1.0, 1)
    host.begin(1.0)
    Database(env).write(0.1, 0.0, 1, loop_of(env, host), lambda: done.append(env.now))
    env.run()
    assert done == pytest.approx([0.2]), "two share the core"


def test_a_flush_takes_along_who_waits_and_results_are_never_older_than_a_tenth_of_a_second() -> None:
    env, done = simpy.Environment(), []
    database = Database(env)
    loop = loop_of(env)
    writer = LedgerWriter(env, database, loop, handing_s=0.0)

    def ask(times: int) -> None:
        for _ in range(times):
            writer.record(0.01, 0.0)
            writer.flush(lambda: done.append(env.now))

    loop.soon(0.0, lambda: ask(2))  # before the writer hears of the first
    loop.at(0.005, 0.0, lambda: ask(5))  # while it writes: all in the next
    env.run()
    assert done == pytest.approx([0.01] * 2 + [0.02] * 5)
    assert database.busy_s == pytest.approx(0.02)
    writer.record(0.01, 0.0)
    at = env.now
    env.run()
    assert env.now == pytest.approx(at + 0.11)


@given(
    limit=st.integers(1, 20),
    period=st.sampled_from([0.5, 1.0, 3.0]),
    asks=st.lists(st.tuples(st.floats(0, 0.4), st.integers(1, 30)), min_size=1, max_size=80),
)
def test_no_window_admits_more_than_the_limit(limit: int, period: float, asks: list[tuple[float, int]]) -> None:
    window = Window(RateLimit(limit=limit, period_s=period, unit="users"))
    now, admitted = 0.0, []
    for gap, users in asks:
        now += gap
        while again := window.admit(now, users):
            assert again > now
            now = again
        admitted.append((now, users))
    for n, (start, _) in enumerate(admitted):
        inside = [users for at, users in admitted[n:] if at < start + period - 1e-9]
        assert sum(inside) <= limit or len(inside) == 1
    for (at, users), (later, _) in pairwise(admitted):
        if users > limit:
            assert later >= at + period * users / limit - 1e-9
