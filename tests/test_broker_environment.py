"""The broker that the environment names: by one address, or by host, port, password and database apart."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote

import pytest
import redis
from click.testing import CliRunner
from measured import lab, run
from shop_system import shop

from saqkit import broker
from saqkit.broker_environment import named_broker
from saqkit.cli.commands import commands
from saqkit.errors import BrokerError

PASSWORD = "s3/cr:t@?#%"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server on loopback that asks for PASSWORD."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [str(broker.find_binary()), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir",
               str(tmp_path_factory.mktemp("server")), "--requirepass", PASSWORD]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = monotonic() + 20
            with redis.Redis(port=port, password=PASSWORD) as client:
                while True:
                    with suppress(redis.ConnectionError):
                        if client.ping():
                            break
                    assert monotonic() < deadline, "the server does not answer"
                    sleep(0.01)
            yield port
        finally:
            server.kill()


@pytest.mark.row("001.4", "002.15", "003.4")
@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, None),
        ({"REDIS_URL": "", "REDIS_HOST": "", "UPSTASH_REDIS_REST_URL": ""}, None),
        ({"REDIS_HOST": "cache.example"}, "redis://cache.example:6379/0"),
        ({"REDIS_HOST": "cache", "REDIS_PORT": "6380", "REDIS_DB": "3"}, "redis://cache:6380/3"),
        ({"REDIS_HOST": "::1", "REDIS_PASSWORD": PASSWORD}, f"redis://:{quote(PASSWORD, safe='')}@[::1]:6379/0"),
        ({"REDIS_URL": "rediss://a", "REDIS_HOST": "b", "REDIS_PORT": "no", "UPSTASH_REDIS_REST_URL": "https://c"},
         "rediss://a"),
        ({"REDIS_HOST": "b", "UPSTASH_REDIS_REST_URL": "https://c"}, "redis://b:6379/0"),
        ({"REDIS_ENABLED": "true", "REDIS_HOST": "b"}, "redis://b:6379/0"),
        ({"REDIS_PORT": "tcp://10.0.0.1:6379"}, None),
    ],
)  # fmt: skip
def test_one_address_goes_before_its_parts_and_these_before_none(environ: dict[str, str], url: str | None) -> None:
    assert named_broker(environ) == url


@pytest.mark.row("001.4", "002.15")
@pytest.mark.parametrize(
    ("environ", "why"),
    [
        ({"REDIS_ENABLED": "false", "REDIS_URL": "redis://a"}, "REDIS_ENABLED=false: no broker may be used"),
        ({"REDIS_ENABLED": "maybe"}, "REDIS_ENABLED: 'maybe' is neither true nor false"),
        ({"REDIS_HOST": "redis://:secret@a:1"}, "REDIS_HOST: is not the name of a host .* REDIS_URL"),
        ({"REDIS_HOST": "a:6380"}, "a port goes into REDIS_PORT"),
        ({"REDIS_HOST": "a", "REDIS_PORT": "66000"}, "REDIS_PORT: '66000' is not a whole number from 1 to 65535"),
        ({"REDIS_HOST": "a", "REDIS_PORT": "٣"}, "REDIS_PORT: '٣' is not a whole number"),
        ({"REDIS_HOST": "redis", "REDIS_PORT": "tcp://10.0.0.1:6379"}, "enableServiceLinks: false"),
        ({"REDIS_HOST": "a", "REDIS_DB": "-1"}, "REDIS_DB: '-1' is not a whole number from 0"),
        ({"REDIS_ENABLED": "redis://:secret@a:1"}, "REDIS_ENABLED: an address is neither true nor false"),
        ({"REDIS_HOST": "a", "REDIS_PORT": "redis://:secret@h:1"}, "REDIS_PORT: an address is not a number from 1"),
        ({"REDIS_HOST": "a", "REDIS_PORT": "secret@h:1"}, "REDIS_PORT: an address is not a whole number from 1"),
        ({"REDIS_HOST": "a", "REDIS_DB": "redis://:secret@h/1"}, "REDIS_DB: an address is not a whole number from 0"),
        ({"REDIS_PORT": "6380"}, "REDIS_PORT is set, but REDIS_HOST is not"),
        ({"REDIS_PASSWORD": "secret"}, "REDIS_PASSWORD is set, but REDIS_HOST is not"),
        ({"UPSTASH_REDIS_REST_URL": "https://eu1.upstash.io", "UPSTASH_REDIS_REST_TOKEN": "secret"},
         r"HTTP-only \(REST\) service cannot block on a key .*rediss://"),
    ],
)  # fmt: skip
def test_what_names_no_broker_says_why_and_shows_no_secret(environ: dict[str, str], why: str) -> None:
    with pytest.raises(BrokerError, match=why) as caught:
        named_broker(environ)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.row("001.4", "002.15", "003.4")
def test_a_command_finds_the_server_by_host_port_and_password(locked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "127.0.0.1", "PORT": str(locked), "PASSWORD": PASSWORD, "DB": "2"}.items():
        monkeypatch.setenv(f"REDIS_{name}", value)
    with redis.Redis.from_url(broker.resolve()) as client:
        assert (client.ping(), client.connection_pool.connection_kwargs["db"]) == (True, 2)
    done = CliRunner().invoke(commands, ["stats", "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["queues"]["notifications"]["waiting"] == 0
    assert broker.status() is None, "no embedded broker was started"


async def test_host_and_port_in_the_environment_alone_are_not_measured_on(
    locked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(locked), "REDIS_PASSWORD": PASSWORD,
                        "NOTIFICATIONS_QUEUE_CONCURRENCY": "1", "JOB_MAX_RETRIES": "no"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with redis.Redis(port=locked, password=PASSWORD) as client:
        before = client.info()["total_connections_received"]
        done = await run(lab(), users=20)
        assert done.measures()["users_done"] == 20
        assert done.topology.queues["notifications"].concurrency == lab().queues["notifications"].concurrency > 1
        assert client.info()["total_connections_received"] == before
        assert client.dbsize() == 0


async def test_a_measurement_writes_no_charges_of_the_application_and_heeds_none_of_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The books that a worker serving for real would write to, and what would end one at its start."""
    for name, value in {"SAQKIT_CHARGES": str(tmp_path / "books.db"), "FRONTEND_URL": "vote.example",
                        "SAQKIT_PAYLOAD_KEYS": "not keys", "SAQKIT_SYNC_URL": "no address",
                        "SAQKIT_REPORTS": str(tmp_path / "reports")}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    reset = {"queue": "notifications", "per_user": {"provider": "email"}}  # a type of emails whose token is secret
    done = await run(shop(**{"job_types__password-reset": reset}), users=20)
    assert set(done.attempts["job_type"]) == {"payment", "receipt"}
    assert done.measures()["users_done"] == 40
    assert list(tmp_path.iterdir()) == []
