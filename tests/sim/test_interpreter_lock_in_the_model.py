"""The threads of the database share Python's interpreter with the event loop of their process."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simpy import Environment
from simulated_run import lab

from saqkit.spec.deployment import Deployment
from saqkit.spec.trace import makespan_s
from saqkit.spec.workload import Workload
from sim.engine.model import Model
from sim.engine.outcome import Outcome
from sim.engine.parts import IN_SQLITE, IN_SQLITE_ROW, WRITING, Database, Host, LedgerWriter, Loop
from sim.fit.profile import Profile

SWITCH_S = 0.005


def burst(switch_s: float, handing_s: float = 0.0, cpu_us: float = 0.0) -> Outcome:
    """300 jobs of one user each in 20 slots of one process."""
    topology = lab(entry=[{"job_type": "notify"}], job_types__notify__per_user__cpu_us=cpu_us)
    costs = replace(Profile.nominal().costs(topology), switch_s=switch_s, handing_s=handing_s)
    return Model(topology, Deployment(concurrency=20), Workload.burst(300), costs, 3).run()


def test_loop_and_threads_share_one_interpreter() -> None:
    beside, locked = burst(0.0), burst(SWITCH_S)
    assert makespan_s(locked.attempts()) > makespan_s(beside.attempts())
    loop_s = locked.utilisation["loop"] * locked.ended_at_s
    assert loop_s + locked.threads_s * (1 - IN_SQLITE_ROW) <= locked.ended_at_s + 1e-9, "never two at once"


def test_sqlite_works_beside_a_loop_that_computes() -> None:
    env, done = Environment(), dict[str, float]()
    host = Host(2, 1.0, 1)
    loop = Loop(env, host, 0.001, 1e-4, switch_s=SWITCH_S)
    loop.lend(0.001, lambda: done.update(thread=env.now), beside_s=0.01)
    loop.soon(0.008, lambda: done.update(loop=env.now))
    env.run()
    assert done == {"loop": pytest.approx(0.001 + 0.008), "thread": pytest.approx(0.001 + 0.01)}
    assert (loop.lent_s, host.core_s) == (pytest.approx(0.011), pytest.approx(0.019))


def test_a_busy_loop_gives_time_only_for_what_python_does_of_a_transaction() -> None:
    env, done = Environment(), dict[str, float]()
    loop = Loop(env, Host(2, 1.0, 1), 0.001, 1e-4, switch_s=SWITCH_S)
    Database(env).write(0.003, 0.006, WRITING, loop, lambda: done.update(thread=env.now))
    beside_s = IN_SQLITE * 0.003 + IN_SQLITE_ROW * 0.006

    def again(left: int) -> None:
        if left:
            loop.soon(0.0005, lambda: again(left - 1))
        else:
            done["loop"] = env.now

    again(100)
    env.run()
    assert done["thread"] < done["loop"] == pytest.approx(0.05 + 0.009 - beside_s)


def test_transactions_wait_for_a_busy_loop() -> None:
    calm, busy = burst(SWITCH_S).attempts(), burst(SWITCH_S, cpu_us=2000).attempts()
    assert busy["database_s"].mean() > calm["database_s"].mean()


def test_handing_transactions_over_costs_the_loop() -> None:
    assert burst(SWITCH_S, 3e-4).utilisation["loop"] > burst(SWITCH_S).utilisation["loop"]


def test_a_thread_waits_no_longer_than_the_switch_interval() -> None:
    env = Environment()
    loop = Loop(env, Host(2, 1.0, 1), 0.001, 1e-4, switch_s=SWITCH_S)
    done: list[float] = []
    for _ in range(50):
        loop.soon(0.001, lambda: None)  # one turn of 49 ms, after a first one
    loop.lend(0.0005, lambda: done.append(env.now))
    env.run(until=0.1)
    assert done == [pytest.approx(0.001 + 0.0005)]  # between the turns
    for _ in range(50):
        loop.soon(0.001, lambda: None)
    env.run(until=env.now + 0.0035)
    loop.lend(0.0005, lambda: done.append(env.now))
    asked_at = env.now
    env.run()
    assert done[1] - asked_at < SWITCH_S + 0.001 + 0.001, "waits for the interval and the callback that runs"


def test_all_who_ask_before_the_writer_hears_of_it_share_a_commit() -> None:
    env = Environment()
    loop = Loop(env, Host(2, 1.0, 1), 0.001, 1e-4, switch_s=SWITCH_S)
    database = Database(env)
    writer = LedgerWriter(env, database, loop, 0.0)
    told: list[float] = []

    def ends() -> None:
        writer.record(0.001, 0.0)
        writer.flush(lambda: told.append(env.now))

    for _ in range(10):
        loop.soon(0.0001, ends)
    env.run(until=0.05)
    assert len(told) == 10
    assert len(set(told)) <= 2, "the first alone has a turn of its own"
    assert database.busy_s < 0.003
