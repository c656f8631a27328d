"""`saqkit check`: broker, database and email server, each with a line and a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis
from command_line import answer, saqkit

from saqkit.testing import SmtpSink


@pytest.fixture(autouse=True)
def at_hand(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'data.db'}")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for localhost that nobody has signed but itself, and a server's context with it."""
    if shutil.which("openssl") is None:
        reason = "the program openssl is not installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days",
                    "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                   check=True, capture_output=True)  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return cert, context


def checks(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["part"]: one for one in said["checks"]}


def failing(**environ: str) -> dict[str, dict[str, Any]]:
    done = saqkit("check", "--json", env=environ)
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)
    assert said["ok"] is False
    return checks(said)


@pytest.mark.row("002.14", "001.15")
def test_each_connection_says_what_answered_and_how_soon(tmp_path: Path) -> None:
    said = answer("check")
    assert said["ok"] is True
    found = checks(said)
    assert list(found) == ["broker", "database", "email"]
    assert re.fullmatch(r"(valkey|redis) [\d.]+ at \S+, PONG after [\d.]+ ms, memory policy noeviction, "
                        r"(no )?append-only file", found["broker"]["text"])  # fmt: skip
    assert re.fullmatch(rf"sqlite 3[\d.]+ at {tmp_path}/data.db, a query takes [\d.]+ ms", found["database"]["text"])
    assert found["email"] | {"took_ms": 0.0} == {"part": "email", "ok": True, "took_ms": 0.0, "warnings": [],
                                                 "text": "email: simulated, there is no server"}  # fmt: skip
    assert all(0 < one["took_ms"] < 10_000 for one in found.values())
    done = saqkit("check")
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines() if "warning" not in line] == [
        ["broker", "ok"], ["database", "ok"], ["email", "ok"]]  # fmt: skip


def test_a_broker_that_may_drop_keys_is_warned_of(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            done = saqkit("check", "--json")
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert done.returncode == 0
    broker = checks(json.loads(done.stdout))["broker"]
    assert "maxmemory-policy is allkeys-lru: jobs may vanish (use noeviction)" in broker["warnings"]


def test_what_fails_says_why_and_the_others_are_tested_all_the_same(tmp_path: Path) -> None:
    found = failing(REDIS_URL="redis://:secret@127.0.0.1:1", SAQKIT_DATABASE_URL="sqlite:////no/such/folder/x.db",
                    SAQKIT_SMTP_URL="smtp://127.0.0.1:1")  # fmt: skip
    assert found["broker"]["text"] == "127.0.0.1:1 refuses the connection: no server listens there"
    assert "/no/such/folder does not exist" in found["database"]["text"]
    assert found["email"]["text"].startswith("email (127.0.0.1:1): ")
    assert [one["ok"] for one in found.values()] == [False, False, False]
    done = saqkit("check", env={"REDIS_URL": "https://eu1.upstash.io"})
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["FAILED", "ok", "ok"]
    assert "HTTP-only" in done.stdout


def test_without_a_broker_none_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL")
    assert "the embedded broker does not run" in failing()["broker"]["text"]
    assert "the embedded broker does not run" in failing()["broker"]["text"]


def test_an_email_server_is_greeted_and_gets_no_message() -> None:
    with SmtpSink() as sink:
        done = saqkit("check", "--json", env={"SAQKIT_SMTP_URL": sink.url})
        assert done.returncode == 0
        text = checks(json.loads(done.stdout))["email"]["text"]
        assert text == f"email (127.0.0.1:{sink.port}), EHLO, not encrypted"
        assert (sink.connections, sink.messages) == (1, [])


def test_a_server_that_is_encrypted_and_asks_who_we_are(
    certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, context = certificate
    with SmtpSink(host="localhost", tls=context, starttls=True, login=("ada", "open-sesame")) as sink:
        url = f"smtp+starttls://ada:{{}}@localhost:{sink.port}"
        assert "certificate" in failing(SAQKIT_SMTP_URL=url.format("open-sesame"))["email"]["text"]
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        wrong = failing(SAQKIT_SMTP_URL=url.format("secret"))["email"]["text"]
        assert "535" in wrong
        assert "secret" not in wrong
        done = saqkit("check", "--json", env={"SAQKIT_SMTP_URL": url.format("open-sesame")})
        text = checks(json.loads(done.stdout))["email"]["text"]
        assert re.fullmatch(rf"email \(localhost:{sink.port}\), EHLO, TLSv1\.\d, logged in", text)


def test_a_server_that_says_nothing_is_waited_for_no_longer_than_a_send(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"smtp://127.0.0.1:{silent.getsockname()[1]}"
        topology = tmp_path / "quick.toml"
        topology.write_text('name = "quick"\nentry = [{ job_type = "send" }]\n[queues.work]\n[job_types.send]\n'
                            'queue = "work"\nper_user = { provider = "email" }\n[providers.email]\nkind = "smtp"\n'
                            "timeout_s = 0.3\n")  # fmt: skip
        done = saqkit("check", "--topology", str(topology), "--json", env={"SAQKIT_SMTP_URL": url})
    assert done.returncode == 1
    assert "no answer within 0.3 s" in checks(json.loads(done.stdout))["email"]["text"]


def test_what_ends_a_worker_at_its_start_fails_here(tmp_path: Path) -> None:
    found = failing(SAQKIT_REPLICA_URL="postgresql://localhost/school")
    assert found["broker"]["ok"]
    assert (found["database"]["ok"], found["email"]["ok"]) == (False, True)
    assert "SQLite has no replicas" in found["database"]["text"]
    assert "links" not in found, "school-events sends no emails that have any"
    topology = tmp_path / "links.toml"
    topology.write_text('name = "links"\nentry = [{ job_type = "welcome" }]\n[queues.work]\n[job_types.welcome]\n'
                        'queue = "work"\nper_user = { provider = "email" }\n[providers.email]\n')  # fmt: skip
    wrong = failing(FRONTEND_URL="vote.example", SAQKIT_TOPOLOGY=str(topology))
    assert [part for part, one in wrong.items() if not one["ok"]] == ["links"]
    assert wrong["links"]["text"].startswith('FRONTEND_URL: "vote.example" is no http:// or https:// address')
    done = saqkit("check", "--json", env={"FRONTEND_URL": "https://vote.example/", "SAQKIT_TOPOLOGY": str(topology)})
    assert done.returncode == 0
    assert checks(json.loads(done.stdout))["links"]["text"] == "those in emails lead to https://vote.example"


@pytest.mark.parametrize(
    ("arguments", "environ", "reason"),
    [
        (["--topology", "shcool-events"], {}, 'did you mean "school-events"?'),
        ([], {"JOB_MAX_RETRIES": "many"}, "JOB_MAX_RETRIES"),
        (["--smtp"], {}, 'there is no option "--smtp"'),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: list[str], environ: dict[str, str], reason: str) -> None:
    done = saqkit("check", *arguments, env=environ)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert reason in done.stderr


def test_a_provider_of_one_of_several_messages_is_named_by_its_medium() -> None:
    done = saqkit("check", "--topology", "shop")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if "warning" not in line] == [
        "broker", "database", "api", "email", "sms"]  # fmt: skip
