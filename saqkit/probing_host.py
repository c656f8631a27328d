"""How fast this host is: the kit's fixed work, timers and broker round trips, measured in processes like a worker's.

The measuring happens in fresh Python processes, each with an event loop of its own, so that neither a notebook's loop
nor a tracer changes the result. They read commands from a pipe and end when it closes: none outlives the probe.

A scale is the mean of its repeats, not their median: a run's time is a sum too, and virtual cores often know two speeds
(a neighbour on the same physical core, or none), between which a median jumps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saqkit.app.work import burn
from saqkit.errors import BrokerError, RunError
from saqkit.spec.probing import Probe

__all__ = ["available_cores", "probe", "yardstick"]

_CHUNK_US = 500.0
_ROUNDS = 3
_REPEATS = 3
_TIMERS_S = (0.0006, 0.0013, 0.0024, 0.0048, 0.0097)
_SCRIPT = "redis.call('LPUSH', KEYS[1], ARGV[1]) return redis.call('RPOP', KEYS[1])"
_CHILD = "from saqkit.probing_host import _serve; _serve()"


async def probe(redis_url: str | None = None, *, seconds: float = 2.0) -> Probe:
    """Measure this host in about `seconds` (at least 0.5), start-up of the measuring processes not counted.

    The broker is the one at `redis_url`, which is left as it was found; by default a private one, for the time. Broker
    CPU is that of the whole server: too high on one that others use meanwhile. Raises `BrokerError` if there is no
    usable broker, `RunError` if a measuring process fails.
    """
    from saqkit.broker import PrivateBroker, check
    from saqkit.disturbance import OtherLoad

    seconds, private, others = max(seconds, 0.5), PrivateBroker(), OtherLoad()
    try:
        url = redis_url or (await asyncio.to_thread(private.start)).url
        server = await asyncio.to_thread(check, url)
        cores = available_cores()
        async with contextlib.AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(_child()) for _ in range(cores)]
            await asyncio.gather(*(_ask(child, "work", 0.02) for child in crowd))  # all are up and warm
            timers = await _ask(crowd[0], "timers", 0.2 * seconds)
            alone: list[float] = []
            crowded: list[float] = []
            for _ in range(_ROUNDS):  # in turns: the speed of a shared machine changes within a second
                alone += (await _ask(crowd[0], "work", 0.3 * seconds / _ROUNDS))["cpu"]
                for one in await asyncio.gather(*(_ask(child, "work", 0.3 * seconds / _ROUNDS) for child in crowd)):
                    crowded += one["wall"]
            calls = await _ask(crowd[0], "calls", url, 0.2 * seconds)
    finally:
        await asyncio.to_thread(private.stop)
    cpu_scale = statistics.fmean(alone)
    return Probe(
        cores=cores,
        cpu_scale=cpu_scale,
        cpu_scale_crowded=statistics.fmean(crowded),
        timer_resolution_s=timers["resolution_s"],
        timer_overshoot_s=timers["overshoot_s"],
        broker_round_trip_s=calls["round_trip_s"],
        broker_cpu_s=calls["broker_cpu_s"],
        client_cpu_s=calls["client_cpu_s"],
        other_load=others.share(),
        spread=(max(alone) - min(alone)) / cpu_scale,
        broker=f"{server['name']} {server['version']}",
        host=platform.node(),
        python=platform.python_version(),
        taken_on=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def yardstick(seconds: float = 0.5) -> float:
    """`Probe.cpu_scale` as it is in this process and minute: blocks for `seconds`.

    To be called beside each run, while nothing of the run is busy: a run whose yardstick is 15 % off the others' was
    made on another machine, as it were. It has a thread and an event loop of its own, so it may be called inside one.
    """
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.extend(asyncio.run(_work(seconds))["cpu"]), name="yardstick")
    thread.start()
    thread.join()
    return statistics.fmean(found)


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@contextlib.asynccontextmanager
async def _child() -> AsyncIterator[asyncio.subprocess.Process]:
    places = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _CHILD),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
        start_new_session=True,  # Ctrl-C is the parent's matter, also while this starts; the closed pipe ends it
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _ask(child: asyncio.subprocess.Process, *command: Any) -> dict[str, Any]:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(60):
            answer: dict[str, Any] = json.loads(await child.stdout.readline() or "{}")
    except (OSError, ValueError) as error:
        raise RunError(f"a measuring process of the probe failed: {type(error).__name__}") from error
    if "error" in answer:
        raise BrokerError(f"the probe's calls to the broker failed: {answer['error']}")
    if not answer:
        raise RunError("a measuring process of the probe ended unexpectedly (its error stands above)")
    return answer


def _serve() -> None:
    """Runs in the child: a command per line of standard input, its answer on a line of standard output."""
    commands: dict[str, Callable[..., Coroutine[Any, Any, dict[str, Any]]]]
    commands = {"work": _work, "timers": _timers, "calls": _calls}
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(asyncio.run(commands[name](*arguments))), flush=True)


async def _work(seconds: float) -> dict[str, Any]:
    """CPU and wall seconds per nominal second of the fixed work in a saturated loop, once for each repeat.

    Twenty tasks each burn and then set a timer, as the slots of a worker do; one always waits for the CPU.
    """
    spent = {"cpu": 0.0, "wall": 0.0, "nominal": 0.0}
    scales: dict[str, list[float]] = {"cpu": [], "wall": []}
    start = time.perf_counter()

    async def slot() -> None:
        while (now := time.perf_counter()) - start < seconds:
            cpu = time.thread_time()
            burn(_CHUNK_US)
            spent["cpu"] += time.thread_time() - cpu
            spent["wall"] += time.perf_counter() - now
            spent["nominal"] += _CHUNK_US * 1e-6
            if time.perf_counter() - start >= (len(scales["cpu"]) + 1) * seconds / _REPEATS:
                for kind, values in scales.items():
                    values.append(spent[kind] / spent["nominal"])
                spent.update(cpu=0.0, wall=0.0, nominal=0.0)
            await asyncio.sleep(0.001)

    await asyncio.gather(*(slot() for _ in range(20)))
    return scales


async def _timers(seconds: float) -> dict[str, Any]:
    """How late an idle loop wakes beyond rounding up to whole `resolution_s` (0 or 1 ms: what fits better), median."""
    late: dict[float, list[float]] = {0.0: [], 0.001: []}
    for _ in range(max(3, round(seconds / sum(_TIMERS_S)))):
        for asked in _TIMERS_S:
            start = time.perf_counter()
            await asyncio.sleep(asked)
            took = time.perf_counter() - start
            for resolution, values in late.items():
                values.append(took - (-(-asked // resolution) * resolution if resolution else asked))
    resolution = min(late, key=lambda kind: _interquartile(late[kind]))
    return {"resolution_s": resolution, "overshoot_s": max(0.0, statistics.median(late[resolution]))}


def _interquartile(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


async def _calls(url: str, seconds: float) -> dict[str, Any]:
    """One client's round trips of a small script, one after the other; it leaves no key behind."""
    from redis.exceptions import RedisError

    from saqkit.queue.connecting import client as connect

    key, took = f"saqkit-probe:{os.getpid()}:{time.time_ns()}", []
    try:
        async with connect(url, key) as client:
            call = client.register_script(_SCRIPT)  # EVALSHA once it is loaded
            for _ in range(100):
                await call(keys=[key], args=["x"])
            broker_cpu, client_cpu, start = await _server_cpu(client), time.process_time(), time.perf_counter()
            while (now := time.perf_counter()) - start < seconds:
                await call(keys=[key], args=["x"])
                took.append(time.perf_counter() - now)
            client_cpu = time.process_time() - client_cpu
            broker_cpu = await _server_cpu(client) - broker_cpu
    except (RedisError, OSError) as error:
        return {"error": " ".join(str(error).split())}
    return {
        "round_trip_s": statistics.median(took),
        "client_cpu_s": client_cpu / len(took),
        "broker_cpu_s": max(0.0, broker_cpu) / len(took),
    }


async def _server_cpu(client: Any) -> float:
    cpu = await client.info("cpu")
    end = "_main_thread" if "used_cpu_user_main_thread" in cpu else ""
    return float(cpu[f"used_cpu_user{end}"]) + float(cpu[f"used_cpu_sys{end}"])
