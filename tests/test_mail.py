"""Providers: what is drawn, what a real SMTP server receives, and whose fault a refusal is."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from saqkit.app.mail import Email, Simulated, build_providers, message_id
from saqkit.app.mail.smtp import Server, Smtp
from saqkit.errors import DescriptionError, PermanentFailure, TemporaryFailure, UsageError
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.topology import Provider, load
from saqkit.testing import SmtpSink

SENDER = "School <no-reply@school.example>"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def mail(user: int = 1, attempt: int = 1, **changes: Any) -> Email:
    fields: dict[str, Any] = {
        "event": 7,
        "user": user,
        "attempt": attempt,
        "to": f"u{user}@school.example",
        "name": "Zoë, the first",
        "subject": "Grüße – term dates",
        "text": "Dear Zoë,\nsee you.\n.\nThe school\n",
        "html": None,
        "message_id": message_id(7, user, sender=SENDER),
        "sender": SENDER,
    }
    return Email(**(fields | changes))


async def outcome(provider: Simulated | Smtp, email: Email) -> str:
    try:
        await provider.send(email)
    except (TemporaryFailure, PermanentFailure) as error:
        return type(error).__name__ if len(str(error).splitlines()) == 1 else f"more than one line: {error}"
    return "sent"


@asynccontextmanager
async def smtp(url: str, *, timeout_s: float = 5.0, pool_size: int = 5) -> AsyncIterator[Smtp]:
    provider = Smtp("post", Provider(kind="smtp", url=url, timeout_s=timeout_s), pool_size=pool_size)
    try:
        yield provider
    finally:
        await provider.close()


@asynccontextmanager
async def server(talk: Talk) -> AsyncIterator[str]:
    """A server of a few lines, for what no decent one does."""
    running = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"smtp://127.0.0.1:{running.sockets[0].getsockname()[1]}"
    finally:
        running.close()


def answering(greeting: bytes, *answers: bytes) -> Talk:
    """Greets, then gives one answer to each line that it reads, and hangs up after the last."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting + b"\r\n")
        for answer in answers:
            if not await reader.readline():
                break
            writer.write(answer + b"\r\n")
        writer.close()

    return talk


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_message_id_depends_on_event_user_and_channel_only() -> None:
    assert message_id(7, 3, sender=SENDER) == "<e7.u3.email@school.example>"
    assert message_id(7, 3, sender="a@school.example") == message_id(7, 3, sender=SENDER)
    ids = {message_id(e, u, c, sender=SENDER) for e in (1, 11) for u in (1, 11) for c in ("email", "sms")}
    assert len(ids) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"subject": "Hello\nBcc: all@school.example"},
        {"subject": "Hello\r\n\r\nanother body"},
        {"name": "Ann\rBcc: x@school.example"},
        {"to": "ann@school.example\n"},
        {"to": "ann@school.example, bob@school.example"},
        {"to": "ann"},
        {"to": ""},
        {"to": "<ann@school.example>"},
        {"sender": "a@school.example\nX: y"},
    ],
)
async def test_a_header_that_ends_its_line_or_a_bad_address_is_refused_for_ever(changes: dict[str, str]) -> None:
    with pytest.raises(PermanentFailure) as refused:
        mail(**changes).to_message()
    assert "\n" not in str(refused.value)
    with pytest.raises(PermanentFailure):
        await Simulated("post", Provider(latency={"kind": "constant", "mean_s": 0}), seed=1).send(mail(**changes))


async def test_the_simulated_provider_fails_whom_the_draws_say() -> None:
    spec = Provider(latency={"kind": "exponential", "mean_s": 0.001}, temporary_share=0.3, permanent_share=0.2)
    provider, users = Simulated("post", spec, seed=42), range(1, 201)

    def expected(user: int, attempt: int) -> str:
        if uniform(42, Stream.TEMPORARY, 7, user, attempt) < 0.3:
            return "TemporaryFailure"
        return "PermanentFailure" if uniform(42, Stream.PERMANENT, 7, user) < 0.2 else "sent"

    for attempt in (1, 2):
        seen = await asyncio.gather(*(outcome(provider, mail(user, attempt)) for user in users))
        assert list(seen) == [expected(user, attempt) for user in users]
        assert set(seen) == {"sent", "TemporaryFailure", "PermanentFailure"}


async def test_the_simulated_provider_waits_for_the_drawn_latency_and_at_most_its_timeout() -> None:
    spec = Provider(latency={"kind": "lognormal", "mean_s": 0.05, "cv": 1.0}, timeout_s=0.1)
    provider = Simulated("post", spec, seed=3)
    drawn = {user: spec.latency.quantile(uniform(3, Stream.LATENCY, 7, user, 1)) for user in range(1, 60)}
    slow, quick = max(drawn, key=drawn.__getitem__), min(drawn, key=drawn.__getitem__)
    assert drawn[slow] > 0.1
    for user, expected_s, result in ((quick, drawn[quick], "sent"), (slow, 0.1, "TemporaryFailure")):
        start = time.perf_counter()
        assert await outcome(provider, mail(user)) == result
        assert expected_s - 0.001 <= time.perf_counter() - start < expected_s + 1.0


async def test_during_an_outage_every_send_fails_at_once() -> None:
    outages: list[tuple[float, float]] = []
    provider = Simulated("post", Provider(latency={"kind": "constant", "mean_s": 0.01}), seed=1, outages=outages)
    assert await outcome(provider, mail()) == "sent"
    outages.append((time.time() - 1, time.time() + 60))
    assert await outcome(provider, mail()) == "TemporaryFailure"
    outages[:] = [(time.time() - 9, time.time() - 1)]
    assert await outcome(provider, mail()) == "sent"


async def test_a_server_receives_each_message_once_with_the_right_headers() -> None:
    with SmtpSink() as sink:
        async with smtp(sink.url) as provider:
            await asyncio.gather(*(provider.send(mail(user, html="<p>Dear Zoë</p>")) for user in range(1, 101)))
        assert 1 <= sink.connections <= 5
        received = {message.message_id: message for message in sink.messages}
    assert len(sink.messages) == 100
    assert set(received) == {f"<e7.u{user}.email@school.example>" for user in range(1, 101)}
    one = received["<e7.u42.email@school.example>"]
    assert (one.sender, one.recipients) == ("no-reply@school.example", ("u42@school.example",))
    message = one.message
    assert message["From"] == SENDER
    assert message["To"].addresses[0].display_name == "Zoë, the first"
    assert message["To"].addresses[0].addr_spec == "u42@school.example"
    assert message["Subject"] == "Grüße – term dates"
    assert abs(message["Date"].datetime.timestamp() - time.time()) < 60
    assert one.content.isascii()
    assert b"\r\n" in one.content
    plain, html = message.iter_parts()
    assert plain.get_content().splitlines() == ["Dear Zoë,", "see you.", ".", "The school"]
    assert html.get_content().strip() == "<p>Dear Zoë</p>"


async def test_an_address_beyond_ascii_is_delivered_where_the_server_takes_it() -> None:
    with SmtpSink() as sink:
        async with smtp(sink.url) as provider:
            await provider.send(mail(to="zoë@school.example"))
    assert sink.messages[0].recipients == ("zoë@school.example",)
    async with server(answering(b"220 old", b"250 old")) as url, smtp(url) as provider:
        with pytest.raises(PermanentFailure, match="beyond ASCII"):
            await provider.send(mail(to="zoë@school.example"))


async def test_refused_for_ever_is_permanent_and_refused_for_now_is_temporary() -> None:
    with SmtpSink(refuse={"u1@school.example"}, defer_once={"u2@school.example"}) as sink:
        async with smtp(sink.url, pool_size=1) as provider:
            with pytest.raises(PermanentFailure, match=r"^post \(127.0.0.1:\d+\): 550 5.1.1 no such mailbox here$"):
                await provider.send(mail(1))
            with pytest.raises(TemporaryFailure, match=r"451 4\.2\.1"):
                await provider.send(mail(2))
            seen = [await outcome(provider, mail(user, 2)) for user in (1, 2, 3)]
            assert seen == ["PermanentFailure", "sent", "sent"]
        assert [message.recipients[0][:2] for message in sink.messages] == ["u2", "u3"]
        assert sink.connections == 1, "a refusal costs no connection"


async def test_a_rate_limit_puts_sends_off_until_there_is_room() -> None:
    with SmtpSink(rate_per_s=10) as sink:
        async with smtp(sink.url) as provider:
            left = list(range(1, 26))
            for attempt in range(1, 200):
                seen = await asyncio.gather(*(outcome(provider, mail(user, attempt)) for user in left))
                left = [user for user, result in zip(left, seen, strict=True) if result == "TemporaryFailure"]
                assert set(seen) <= {"sent", "TemporaryFailure"}
                if not left:
                    break
                await asyncio.sleep(0.1)
        assert left == []
    assert len({message.message_id for message in sink.messages}) == len(sink.messages) == 25
    assert sink.messages[-1].at_unix - sink.messages[0].at_unix > 1.9


async def test_a_connection_that_the_server_closed_is_replaced_and_nothing_is_sent_twice() -> None:
    with SmtpSink(messages_per_connection=1) as sink:
        async with smtp(sink.url, pool_size=2) as provider:
            for user in range(1, 11):
                assert await outcome(provider, mail(user)) == "sent"
        assert len({message.message_id for message in sink.messages}) == len(sink.messages) == 10
        assert sink.connections == 10


async def test_a_connection_found_closed_at_the_next_message_is_replaced() -> None:
    accepted: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        for answer in (b"250 hello", b"250 ok", b"250 ok", b"354 go on"):
            await reader.readline()
            writer.write(answer + b"\r\n")
        accepted.append(await reader.readuntil(b"\r\n.\r\n"))
        writer.write(b"250 ok\r\n")
        if await reader.readline() and len(accepted) % 2:  # the next MAIL: an answer, or just the end
            writer.write(b"421 4.4.2 idle too long\r\n")
        writer.close()

    async with server(talk) as url, smtp(url, pool_size=1) as provider:
        assert [await outcome(provider, mail(user)) for user in range(1, 6)] == ["sent"] * 5
    assert [f"<e7.u{user}.email@".encode() in content for user, content in enumerate(accepted, 1)] == [True] * 5


async def test_sends_share_the_connections_that_the_server_accepts() -> None:
    with SmtpSink(max_connections=2) as sink:
        async with smtp(sink.url, pool_size=8) as provider:
            await provider.send(mail(1))
            await asyncio.gather(*(provider.send(mail(user)) for user in range(2, 51)))
        assert len({message.message_id for message in sink.messages}) == len(sink.messages) == 50


async def test_too_many_connections_is_temporary_when_none_is_ours() -> None:
    with SmtpSink(max_connections=0) as sink:
        async with smtp(sink.url) as provider:
            with pytest.raises(TemporaryFailure, match=r"421 4\.7\.0 too many connections"):
                await provider.send(mail())


@pytest.mark.parametrize(
    "talk",
    [
        answering(b"554 5.3.2 no service here"),
        answering(b"220 hello", b"550 not you", b"550 not you"),
        answering(b"220 hello", b"250 hello", b"550 5.7.1 sender refused", b"250 reset"),
        answering(b"220 hello", b"250 hello", b"250 ok", b"530 5.7.0 log in first", b"250 reset"),
        answering(b"220 hello", b"250 hello", b"250 ok"),
        answering(b"220 hello", b"250 hello", b"250 ok", b"250 ok", b"354 go on"),
        answering(b"what is this"),
        answering(b""),
    ],
    ids=["greeting", "hello", "sender", "login", "hangs up", "hangs up in data", "not SMTP", "empty"],
)
async def test_what_is_not_the_recipients_fault_is_temporary(talk: Talk) -> None:
    async with server(talk) as url, smtp(url, timeout_s=0.5) as provider:
        assert await outcome(provider, mail()) == "TemporaryFailure"


@pytest.mark.parametrize("code", [b"550 5.7.1 spam", b"552 5.3.4 too big", b"554 no"])
async def test_a_message_that_is_refused_is_permanent(code: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello\r\n")
        for answer in (b"250 hello", b"250 ok", b"250 ok", b"354 go on"):
            await reader.readline()
            writer.write(answer + b"\r\n")
        await reader.readuntil(b"\r\n.\r\n")
        writer.write(code + b"\r\n")
        writer.close()

    async with server(talk) as url, smtp(url) as provider:
        with pytest.raises(PermanentFailure, match=code.decode()):
            await provider.send(mail())


@pytest.mark.parametrize(
    "lines",
    [0, 1, 3, 5],
    ids=["never greets", "mute after the greeting", "mute after MAIL", "takes the message and says nothing"],
)
async def test_a_server_that_says_nothing_is_given_up(lines: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (b"220 hello\r\n", *[b"250 ok\r\n"] * 3, b"354 go on\r\n")[:lines]:
            writer.write(answer)
            await reader.readline()
        await reader.read()
        writer.close()

    async with server(talk) as url, smtp(url, timeout_s=0.3, pool_size=2) as provider:
        start = time.perf_counter()
        seen = await asyncio.gather(*(outcome(provider, mail(user)) for user in range(1, 5)))
        assert list(seen) == ["TemporaryFailure"] * 4
        assert time.perf_counter() - start < 5.0


async def test_a_send_that_is_cancelled_does_not_spoil_the_next_one() -> None:
    with SmtpSink() as sink:
        async with smtp(sink.url, pool_size=1) as provider:
            for user in range(1, 20):
                task = asyncio.create_task(provider.send(mail(user)))
                for _ in range(user):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await provider.send(mail(100 + user))
        assert {f"u{100 + user}@school.example" for user in range(1, 20)} <= {m.recipients[0] for m in sink.messages}


async def test_nobody_at_home_is_temporary() -> None:
    async with smtp(f"smtp://127.0.0.1:{unused_port()}") as provider:
        assert await outcome(provider, mail()) == "TemporaryFailure"


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
async def test_a_wrong_password_is_temporary_and_shown_nowhere() -> None:
    with SmtpSink(login=("school", "p@ss/word")) as sink:
        address = sink.url.removeprefix("smtp://")
        async with smtp(f"smtp://school:p%40ss%2Fword@{address}") as provider:
            assert "p@ss" not in repr(vars(provider))
            await provider.send(mail())
        async with smtp(f"smtp://school:wrong-one@{address}") as provider:
            with pytest.raises(TemporaryFailure, match="535") as refused:
                await provider.send(mail())
    assert len(sink.messages) == 1
    assert "wrong-one" not in str(refused.value)


async def test_a_password_that_the_server_repeats_is_not_shown() -> None:
    talk = answering(b"220 hello", b"250-hello\r\n250 AUTH PLAIN", b"535 5.7.8 nobody has the password hunter2 here")
    async with server(talk) as url, smtp(url.replace("//", "//school:hunter2@")) as provider:
        with pytest.raises(TemporaryFailure, match=r"535 5\.7\.8 nobody has the password \*\*\* here"):
            await provider.send(mail())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate with its key in one file."""
    if shutil.which("openssl") is None:
        reason = "the program openssl is not installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    folder = tmp_path_factory.mktemp("tls")
    key, file = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(file)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    file.write_text(file.read_text() + key.read_text())
    return file


@pytest.fixture
def tls(certificate: Path) -> Iterator[ssl.SSLContext]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("starttls", [False, True], ids=["smtps", "starttls"])
async def test_tls_delivers_to_a_trusted_server_only(
    starttls: bool, tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SmtpSink(tls=tls, starttls=starttls) as sink:
        async with smtp(sink.url) as provider:
            with pytest.raises(TemporaryFailure, match="certificate"):
                await provider.send(mail(1))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with smtp(sink.url) as provider:
            await asyncio.gather(*(provider.send(mail(user)) for user in range(2, 12)))
    assert {message.recipients[0] for message in sink.messages} == {f"u{user}@school.example" for user in range(2, 12)}


async def test_starttls_is_never_given_up_for_plain_text() -> None:
    with SmtpSink() as sink:
        async with smtp(sink.url.replace("smtp:", "smtp+starttls:")) as provider:
            assert await outcome(provider, mail()) == "TemporaryFailure"
    assert sink.messages == []


@pytest.mark.parametrize(
    ("url", "host", "port", "user", "password"),
    [
        ("smtp://127.0.0.1", "127.0.0.1", 25, None, None),
        ("smtps://u:p%3A%40@mail.example", "mail.example", 465, "u", "p:@"),
        ("smtp+starttls://u:p@mail.example:2587/", "mail.example", 2587, "u", "p"),
        ("smtp://[::1]:2525", "::1", 2525, None, None),
    ],
)
def test_an_address_is_read(url: str, host: str, port: int, user: str | None, password: str | None) -> None:
    server = Server.parse(url)
    assert (server.host, server.port, server.user, server.password) == (host, port, user, password)
    assert "p:@" not in repr(server)


@pytest.mark.parametrize(
    "url",
    [
        "mail.example:25",
        "http://mail.example",
        "smtp://",
        "smtp://mail.example:0",
        "smtp://mail.example:99999",
        "smtp://mail.example:port",
        "smtp://mail.example/inbox",
        "smtp://only-a-user:@mail.example",
        "smtp://u:secret%0d%0a@mail.example",
        "smtp://u:secret@[::1",
    ],
)
def test_a_bad_address_is_a_description_error_that_hides_it(url: str) -> None:
    with pytest.raises(DescriptionError, match="SAQKIT_SMTP_URL") as wrong:
        build_providers(load("school-events"), 1, {"SAQKIT_SMTP_URL": url})
    assert "secret" not in str(wrong.value)
    assert "\n" not in str(wrong.value)


async def test_providers_are_built_as_described_or_as_the_environment_says() -> None:
    topology = load("school-events")
    described = build_providers(topology, 1, {})
    assert set(described) == set(topology.providers)
    assert {type(provider) for provider in described.values()} == {Simulated}
    with SmtpSink() as sink:
        environ = {"SAQKIT_SMTP_URL": sink.url, "SAQKIT_SMTP_SENDER": "Head <head@school.example>"}
        replaced = build_providers(topology, 1, environ)
        assert set(replaced) == set(topology.providers)
        for provider in replaced.values():
            assert isinstance(provider, Smtp)
            assert provider.sender == "Head <head@school.example>"
            await provider.send(mail(sender=provider.sender))
            await provider.close()
    assert {message.sender for message in sink.messages} == {"head@school.example"}
    with pytest.raises(DescriptionError, match="SAQKIT_SMTP_SENDER"):
        build_providers(topology, 1, {"SAQKIT_SMTP_SENDER": "nobody"})


@pytest.mark.parametrize(
    ("channel", "kind"), [("sms", Simulated), ("api.payment", Simulated), ("email", Smtp), ("email.welcome", Smtp)]
)
def test_a_server_for_emails_replaces_providers_of_emails_only(channel: str, kind: type[object]) -> None:
    data = load("school-events").to_dict()
    name = next(iter(data["providers"]))
    data["providers"][name]["channel"] = channel
    topology = type(load("school-events")).parse(data)
    assert isinstance(build_providers(topology, 1, {"SAQKIT_SMTP_URL": "smtp://127.0.0.1:1"})[name], kind)


@pytest.mark.parametrize(
    ("channel", "said"),
    [("emial", 'there is no channel "emial" (did you mean "email"?)'), ("email.A b", "what follows the dot")],
)
def test_a_channel_that_is_none_is_refused(channel: str, said: str) -> None:
    data = load("school-events").to_dict()
    data["providers"]["email"]["channel"] = channel
    with pytest.raises(DescriptionError) as wrong:
        type(load("school-events")).parse(data, "school.toml")
    assert "school.toml: providers.email.channel" in str(wrong.value)
    assert said in str(wrong.value)


def test_the_sink_says_which_port_is_taken() -> None:
    with SmtpSink() as sink, pytest.raises(UsageError, match=str(sink.port)), SmtpSink(port=sink.port):
        pass


@pytest.mark.parametrize("wrong", ["--port=99999", "--out=/nowhere/mail.jsonl", "--host=192.0.2.1"])
def test_the_sink_at_the_command_line_refuses_in_one_line(wrong: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "saqkit.testing", "--port=0", f"--out={tmp_path / 'mail.jsonl'}", wrong]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


async def test_the_sink_at_the_command_line_writes_a_line_per_message(tmp_path: Path) -> None:
    out = tmp_path / "mail.jsonl"
    command = [sys.executable, "-m", "saqkit.testing", "--port=0", f"--out={out}", "--refuse=u2@school.example"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.removeprefix("listening on ").partition(",")[0]
        try:
            async with smtp(url) as provider:
                assert [await outcome(provider, mail(u)) for u in (1, 2, 3)] == ["sent", "PermanentFailure", "sent"]
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["to"] for line in lines] == ["u1@school.example", "u3@school.example"]
    assert [line["message_id"] for line in lines] == ["<e7.u1.email@school.example>", "<e7.u3.email@school.example>"]
    assert lines[0]["subject"] == "Grüße – term dates"
