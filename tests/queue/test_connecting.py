"""Queues on every kind of address: what is refused and why, TLS, users with limited rights, one slot for all keys."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from real_servers import Server, ended, make_certificates, wait_until
from redis import asyncio as aioredis
from redis.crc import key_slot
from redis.exceptions import NoPermissionError
from saq.job import Job
from whole_life import OPTIONS, keys_of, live

from saqkit import broker
from saqkit.broker_address import parse
from saqkit.errors import BrokerError, RunError
from saqkit.queue.connecting import blocking_twin, queue_client
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import digest, names

MakeQueue = Callable[..., Queue]


# --- one slot


async def test_every_key_of_a_queue_lies_in_one_slot(make_queue: MakeQueue, redis_url: str) -> None:
    queue, other = make_queue("one", **OPTIONS), make_queue("two")
    with redis.Redis.from_url(redis_url) as admin:
        admin.script_flush()
        await live(queue, other)
        known = dict(zip(names(), admin.script_exists(*map(digest, names())), strict=True))
    assert [name for name, there in known.items() if not there] == []  # what the life above has not touched
    found = await keys_of(queue.redis)
    ours = {key for key in found if b"{one}" in key}
    assert len(ours) > 8
    assert {key_slot(key) for key in ours} == {key_slot(b"saq:{one}:")}
    assert {key_slot(key) for key in found - ours} == {key_slot(b"saq:{two}:")}


def test_a_name_that_is_no_hash_tag_is_refused_in_a_cluster() -> None:
    for name in ("", "}"):
        with pytest.raises(BrokerError, match="its keys would lie on several nodes of a cluster"):
            Queue.from_url("redis+cluster://127.0.0.1:1", name=name)
    for name in ("a{b}c", "a}b", "é x"):
        tag = queue_client("redis+cluster://127.0.0.1:1", name).connection_pool.connection_kwargs["place"]
        assert key_slot(f"saq:job:{{{name}}}:k".encode()) == tag._slot


# --- addresses


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://eu1.example.com", "an HTTP-only .REST. service cannot block on a key and keeps no scripts"),
        ("HTTP://token:secret@localhost:8079", "HTTP-only"),
        ("redis+sentinels://localhost/jobs", r"did you mean redis\+sentinel://"),
        ("redis+sentinel://:secret@a:1,b:2", "the service is missing"),
        ("redis+sentinel://a:1,b:2/jobs/first", "the database is not a number"),
        ("redis+sentinel://a:1,b:secret@c:none/jobs", "the port is not a number"),
        ("redis+cluster://a:1,b:99999", "the port is not a number"),
        ("redis+cluster://a:1,b:2/3", "a cluster has database 0 alone"),
        ("redis://a?colour=secret&password=secret", "unknown or has an impossible value"),
        ("redis+cluster://a:1?socket_timeout=secret", "unknown or has an impossible value"),
    ],
)
@pytest.mark.row("001.4", "002.14", "002.15", "003.4")
def test_a_queue_refuses_an_address_and_says_why(url: str, why: str) -> None:
    with pytest.raises(BrokerError, match=why) as caught:
        Queue.from_url(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value).replace("colour=secret", "").replace("timeout=secret", "")


@pytest.mark.parametrize("url", ["https://x.example", "redis+sentinel://a:1", "amqp://a", "redis://a:b", "unix://"])
def test_queue_and_broker_refuse_in_the_same_words(url: str) -> None:
    said = []
    for call in (Queue.from_url, broker.check, broker.resolve):
        with pytest.raises(BrokerError) as caught:
            call(url)  # type: ignore[operator]
        said.append(str(caught.value))
    assert len(set(said)) == 1


def test_an_address_of_several_hosts_is_taken_apart() -> None:
    found = parse("rediss+sentinel://me:pw@a,b:2,[::1]:3/jobs/4?ssl_ca_certs=ca.pem&sentinel_password=s%20w")
    assert (found.scheme, found.via, found.service) == ("rediss", "sentinel", "jobs")
    assert found.hosts == (("a", 26379), ("b", 2), ("::1", 3))
    assert found.place == "a:26379,b:2,[::1]:3"
    assert found.url == "rediss://me:pw@a:26379/4?ssl_ca_certs=ca.pem"
    assert found.credentials == {"password": "s w"}
    assert "pw" not in repr(found)
    settings = queue_client("redis+cluster://me:pw@a:1,b", "q").connection_pool.connection_kwargs
    assert (settings["username"], settings["password"]) == ("me", "pw")
    assert settings["place"]._given == (("a", 1), ("b", 6379))


async def test_redis_pys_own_sentinel_client_has_a_twin_that_asks_the_same_sentinels() -> None:
    manager = aioredis.Sentinel([("a", 1), ("b", 2)], sentinel_kwargs={"password": "theirs"})
    twin = blocking_twin(manager.master_for("jobs", password="ours", db=3))
    place = twin.connection_pool.connection_kwargs["place"]
    assert twin.connection_pool.connection_kwargs["password"] == "ours"
    assert twin.connection_pool.connection_kwargs["db"] == 3
    assert (place._given, place._service, place._options["password"]) == ((("a", 1), ("b", 2)), "jobs", "theirs")
    with pytest.raises(BrokerError, match="a queue needs a plain, TLS or unix-socket connection"):
        blocking_twin(manager.slave_for("jobs"))


# --- servers of our own


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers in folders of their own, ended afterwards."""
    number = iter(range(100))
    with ended():

        def start(*words: str, **options: Any) -> Server:
            server = Server(tmp_path / f"server{next(number)}", *words, **options)
            wait_until(server.ready)
            return server

        yield start


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if shutil.which("openssl") is None:
        pytest.fail("the program openssl is not installed")
    return make_certificates(tmp_path_factory.mktemp("tls"))


async def test_tls_carries_a_whole_life(
    start: Callable[..., Server], certificates: dict[str, str], make_queue: MakeQueue
) -> None:
    words = ("--tls-cert-file", certificates["cert"], "--tls-key-file", certificates["key"],
             "--tls-ca-cert-file", certificates["ca"], "--tls-auth-clients", "yes")  # fmt: skip
    server = start(*words, tls=certificates)
    place = f"rediss://127.0.0.1:{server.port}"
    own = f"ssl_certfile={certificates['cert']}&ssl_keyfile={certificates['key']}"
    url = f"{place}?ssl_ca_certs={certificates['ca']}&{own}"
    await live(make_queue("q", url=url, **OPTIONS), make_queue("other", url=url))
    assert broker.check(url)["name"] == "redis"
    assert {info["laddr"].rpartition(":")[2] for info in server.client().client_list()} == {str(server.port)}
    with pytest.raises(BrokerError, match=f"^127.0.0.1:{server.port} cannot be used as a broker.*CERTIFICATE_VERIFY"):
        broker.check(place)


async def test_tls_in_a_cluster(
    start: Callable[..., Server], certificates: dict[str, str], make_queue: MakeQueue
) -> None:
    words = ("--tls-cert-file", certificates["cert"], "--tls-key-file", certificates["key"],
             "--tls-ca-cert-file", certificates["ca"], "--tls-auth-clients", "no", "--tls-cluster", "yes",
             "--cluster-enabled", "yes")  # fmt: skip
    server = start(*words, tls=certificates)
    server.ask("CLUSTER", "ADDSLOTS", *range(16384))
    await asyncio.to_thread(wait_until, lambda: "cluster_state:ok" in server.ask("CLUSTER", "INFO"))
    queue = make_queue("q", url=f"rediss+cluster://127.0.0.1:{server.port}?ssl_ca_certs={certificates['ca']}")
    assert await queue.enqueue("f")
    twin = blocking_twin(queue.redis)
    assert await asyncio.to_thread(twin.zcard, queue.namespace("queued:3")) == 1
    twin.close()
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY"):
        await make_queue("q", url=f"rediss+cluster://127.0.0.1:{server.port}").enqueue("f")


async def test_a_run_is_not_measured_in_a_cluster() -> None:
    import saqkit

    with pytest.raises(RunError, match="a run is measured on one server") as caught:
        await saqkit.measure("school-events", users=1, workers=1, redis="redis+cluster://:secret@127.0.0.1:1")
    assert "secret" not in str(caught.value)


async def test_a_plain_address_of_one_node_of_a_cluster_says_what_would_be_right(
    start: Callable[..., Server], make_queue: MakeQueue
) -> None:
    server = start("--cluster-enabled", "yes")
    server.ask("CLUSTER", "ADDSLOTS", key_slot(b"saq:{mine}:"))
    server.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    server.ask("CLUSTER", "SET-CONFIG-EPOCH", 1)
    other = start("--cluster-enabled", "yes")
    other.ask("CLUSTER", "ADDSLOTS", key_slot(b"saq:{theirs}:"))
    other.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
    server.ask("CLUSTER", "MEET", "127.0.0.1", other.port)
    wait_until(lambda: "cluster_state:ok" in server.ask("CLUSTER", "INFO") and len(server.ask("CLUSTER", "SLOTS")) == 2)
    url = f"redis://127.0.0.1:{server.port}"
    assert await make_queue("mine", url=url).enqueue("f") is not None
    with pytest.raises(BrokerError, match=rf"is one node of a cluster: give redis\+cluster://127.0.0.1:{server.port}"):
        await make_queue("theirs", url=url).enqueue("f")
    nobodys = next(name for name in map(str, range(100)) if key_slot(f"saq:{{{name}}}:".encode()) not in
                   (key_slot(b"saq:{mine}:"), key_slot(b"saq:{theirs}:")))  # fmt: skip
    with pytest.raises(redis.ConnectionError, match="does not know the node of slot"):
        await make_queue(nobodys, url=f"redis+cluster://127.0.0.1:{server.port}").enqueue("f")


async def test_a_primary_that_is_demoted_under_a_plain_address_is_connected_to_anew(
    start: Callable[..., Server], make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    new, old = start(), start()
    queue = make_queue("q", url=f"redis://127.0.0.1:{old.port}", lease_s=9.0)
    waiting = asyncio.create_task(queue.dequeue(timeout=20))
    await asyncio.to_thread(wait_until, lambda: old.client().info("clients")["blocked_clients"] == 1)
    old.ask("REPLICAOF", "127.0.0.1", new.port)
    with pytest.raises(redis.ConnectionError, match="read only replica"):
        await queue.enqueue("f")
    # As if the name led to the new one from now on: only a connection that is made anew finds it.
    queue.redis.connection_pool.connection_kwargs["port"] = new.port
    for connection in queue.redis.connection_pool._available_connections:
        connection.port = new.port
    for connection in queue.redis.connection_pool._in_use_connections:
        connection.port = new.port
    job = await queue.enqueue("f")
    taken = await waiting
    assert job is not None
    assert taken is not None
    assert taken.key == job.key
    await queue.finish(taken, "complete")  # type: ignore[arg-type]
    assert "Traceback" not in caplog.text


# --- users with limited rights

KEYS = "~saq:{q}:* ~saq:job:{q}:*"
CHANNELS = "&saq:job:{q}:*"
COMMANDS = "+@read +@write -@dangerous +eval +evalsha +script|load +psubscribe +publish +multi +exec +time +ping +info"
"""The rule of docs/where_it_runs.md for a queue `q`."""


@pytest.fixture
def limited(start: Callable[..., Server]) -> Callable[[str], str]:
    """Starts a server with a user under a rule; returns the address with his name and password."""

    def make(rule: str) -> str:
        server = start()
        server.ask("ACL", "SETUSER", "worker", "on", ">secret", "resetchannels", *rule.split())
        return f"redis://worker:secret@127.0.0.1:{server.port}"

    return make


async def test_a_user_with_the_documented_rights_can_do_everything(
    limited: Callable[[str], str], make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = f"{KEYS} {CHANNELS}".replace("{q}", "{other}")
    url = limited(f"{KEYS} {CHANNELS} {theirs} {COMMANDS}")
    queue = make_queue("q", url=url, **OPTIONS)
    await live(queue, make_queue("other", url=url))
    assert (await asyncio.to_thread(broker.check, url))["name"] == "redis"
    assert "permission" not in caplog.text
    with pytest.raises(NoPermissionError):
        await queue.redis.flushall()
    with pytest.raises(BrokerError, match="the broker's user lacks a right"):
        await make_queue("nobodys", url=url).enqueue("f")


def test_the_documented_rule_is_the_one_that_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "where_it_runs.md").read_text(encoding="utf-8")
    assert f"{KEYS} resetchannels {CHANNELS} {COMMANDS}" in page


@pytest.mark.parametrize("left_out", [*KEYS.split(), "+eval", "+evalsha", "+time", "+publish", "+@write"])
async def test_a_right_that_is_missing_is_said_and_not_waited_for(
    left_out: str, limited: Callable[[str], str], make_queue: MakeQueue
) -> None:
    rule = [word for word in f"{KEYS} {CHANNELS} {COMMANDS}".split() if word != left_out]
    queue = make_queue("q", url=limited(" ".join(rule)))

    async def use() -> None:
        job = await queue.enqueue("f", key="k")
        assert job is not None
        await queue.abort(job, "this is published")

    with pytest.raises(
        BrokerError, match=r"the broker's user lacks a right that a queue needs .*where_it_run"
    ) as caught:
        await use()
    assert "secret" not in str(caught.value)


async def test_whom_the_server_lets_tell_nobody_does_its_steps_all_the_same(
    limited: Callable[[str], str], make_queue: MakeQueue, sound: Callable[[Queue], Awaitable[None]]
) -> None:
    """Without the right to publish jobs run and end as ever; who waits for an end is not told."""
    url = limited(f"{KEYS} {CHANNELS} {COMMANDS}".replace(" +publish", ""))
    queue, sweeper = make_queue("q", url=url, lease_s=1.0), make_queue("q", url=url, lease_s=1.0)
    await queue.enqueue_many([Job("f", key=key, timeout=0) for key in "abc"])
    assert len(await queue.run_script("take", 2, "w", 1.0, 0, 1, "jobs", "somebody", 0, "", 0.2)) == 5
    assert (await queue.count("active"), await queue.count("queued")) == (2, 1)
    await sound(queue)
    leased = queue.namespace("leases")
    tokens = [await queue.redis.hget(queue.key_of(key), "tok") for key in "ab"]  # type: ignore[misc]
    for key, token in zip("ab", tokens, strict=True):
        assert await queue.run_script("finish", key, token, "{}", 600, "") == [1]
    assert await queue.count("active") == 0
    await sound(queue)
    # A lease that is left over, as an older version may have left it, runs nothing again.
    await queue.redis.zadd(leased, {"a": 1})
    await sweeper.run_script("renew", 1.0)  # somebody lives
    await sweeper.sweep()
    assert (await queue.count("active"), await queue.count("queued")) == (0, 1)
    assert await queue.redis.hget(queue.key_of("a"), "state") == b"4"  # type: ignore[misc]


@pytest.mark.parametrize("left_out", ["+psubscribe", CHANNELS])
async def test_whoever_may_not_listen_is_told_at_once(
    left_out: str, limited: Callable[[str], str], make_queue: MakeQueue
) -> None:
    rule = [word for word in f"{KEYS} {CHANNELS} {COMMANDS}".split() if word != left_out]
    queue = make_queue("q", url=limited(" ".join(rule)))
    job = await queue.enqueue("f")
    assert job is not None
    for _ in range(2):
        with pytest.raises(NoPermissionError):
            await job.refresh(until_complete=30)
