"""A real SMTP server on this machine that keeps what it is sent: for tests, examples and trying things out.

`SmtpSink` runs in a thread; `python -m saqkit.testing --port 2525 --out mail.jsonl` is the same at the command line and
writes one line of JSON per accepted message. It needs aiosmtpd (`pip install aiosmtpd`).
"""

from __future__ import annotations

import argparse
import asyncio
import email
import email.policy
import json
import os
import signal
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from saqkit.errors import SaqkitError, UsageError

__all__ = ["Received", "SmtpSink", "main"]


@dataclass(frozen=True)
class Received:
    """A message that the sink accepted: its envelope, its bytes, and when it came (Unix seconds)."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    at_unix: float

    @property
    def message(self) -> EmailMessage:
        """The message, parsed."""
        return email.message_from_bytes(self.content, policy=email.policy.default)

    @property
    def message_id(self) -> str:
        """Its Message-ID, empty if it has none."""
        return str(self.message["Message-ID"] or "")


class SmtpSink:
    """A context manager: an SMTP server in a thread of its own; `url` is its address, `messages` what it accepted.

    `refuse`: recipients refused for ever (550). `defer_once`: recipients refused the first time only (451).
    `rate_per_s`: at most so many recipients in any second, the others are put off (451). `max_connections`: more are
    turned away (421). `messages_per_connection`: the connection is closed after so many. `login`: (user, password)
    that must be given. `tls`: a server context, used from the start (`smtps`) or, with `starttls`, after STARTTLS.
    `on_message` is called in the server's thread.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        refuse: Collection[str] = (),
        defer_once: Collection[str] = (),
        rate_per_s: int | None = None,
        max_connections: int | None = None,
        messages_per_connection: int | None = None,
        login: tuple[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        starttls: bool = False,
        on_message: Callable[[Received], None] | None = None,
    ) -> None:
        self.host, self.port = host, port
        self.refuse, self.defer_once, self.rate_per_s = set(refuse), set(defer_once), rate_per_s
        self.max_connections, self.messages_per_connection = max_connections, messages_per_connection
        self.messages: list[Received] = []
        self.connections = 0
        self._login, self._tls, self._starttls, self._on_message = login, tls, starttls, on_message
        self._deferred: set[str] = set()
        self._recent: deque[float] = deque()
        self._live: dict[Any, int] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="smtp-sink", daemon=True)
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Its address, as `SAQKIT_SMTP_URL` takes it (without a log-in)."""
        scheme = "smtp" if self._tls is None else "smtp+starttls" if self._starttls else "smtps"
        return f"{scheme}://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        except (OSError, OverflowError) as error:
            self.__exit__(None, None, None)
            place = f"{self.host}:{self.port}"
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
            raise UsageError(f"no SMTP server can listen on {place}: {reason} (port 0: any free one)") from error
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        try:
            from aiosmtpd.smtp import SMTP, AuthResult
        except ImportError as error:
            raise UsageError("the SMTP sink needs aiosmtpd: pip install aiosmtpd") from error
        sink = self

        class Connection(SMTP):
            """One connection, counted while it is open."""

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                if self.transport is None:  # else: the same connection, encrypted by STARTTLS
                    sink.connections += 1
                    if sink.max_connections is not None and len(sink._live) >= sink.max_connections:
                        cast(asyncio.Transport, transport).write(b"421 4.7.0 too many connections\r\n")
                        transport.close()
                        return
                sink._live.setdefault(self, 0)
                super().connection_made(transport)

            def connection_lost(self, error: Exception | None) -> None:
                if sink._live.pop(self, None) is not None:
                    super().connection_lost(error)

        def authenticator(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
            given = (data.login, data.password)
            return AuthResult(success=given == tuple(part.encode() for part in sink._login or ()), handled=False)

        def connection() -> Connection:
            return Connection(
                self,
                enable_SMTPUTF8=True,
                hostname="localhost",
                tls_context=self._tls if self._starttls else None,
                require_starttls=self._starttls,
                authenticator=authenticator,
                auth_required=self._login is not None,
                auth_require_tls=False,
                loop=self._loop,
            )

        return await self._loop.create_server(
            connection, self.host, self.port, ssl=None if self._starttls else self._tls
        )

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._live):
            if connection.transport is not None:
                connection.transport.close()
        tasks = asyncio.all_tasks() - {cast(asyncio.Task[Any], asyncio.current_task())}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        """Called by aiosmtpd for each recipient; the answer decides about it."""
        if address in self.refuse:
            return "550 5.1.1 no such mailbox here"
        if address in self.defer_once - self._deferred:
            self._deferred.add(address)
            return "451 4.2.1 mailbox busy, try again later"
        now = time.monotonic()
        while self._recent and self._recent[0] <= now - 1.0:
            self._recent.popleft()
        if self.rate_per_s is not None and len(self._recent) >= self.rate_per_s:
            return "451 4.7.1 too many messages, slow down"
        self._recent.append(now)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        """Called by aiosmtpd with a whole message."""
        content = envelope.original_content or envelope.content
        received = Received(envelope.mail_from, tuple(envelope.rcpt_tos), content, time.time())
        self.messages.append(received)
        if self._on_message is not None:
            self._on_message(received)
        self._live[server] = self._live.get(server, 0) + 1
        if self._live[server] == self.messages_per_connection:
            self._loop.call_soon(lambda: self._loop.call_soon(server.transport.close))  # after the answer is written
        return "250 2.0.0 OK"


def main(arguments: list[str] | None = None) -> int:
    """The sink at the command line, until SIGINT or SIGTERM; returns the exit status."""
    about = "An SMTP server on this machine that keeps what it is sent."
    parser = argparse.ArgumentParser(prog="python -m saqkit.testing", description=about)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=2525, help="port to listen on; 0: any free one (default: 2525)")
    parser.add_argument("--out", type=Path, required=True, help="file to append one line of JSON per message to")
    parser.add_argument("--refuse", action="append", default=[], metavar="ADDRESS", help="refuse it for ever (550)")
    parser.add_argument("--defer", action="append", default=[], metavar="ADDRESS", help="refuse it once (451)")
    parser.add_argument("--rate", type=int, metavar="N", help="accept at most N recipients in any second (451)")
    given = parser.parse_args(arguments)
    end = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: end.set())
    try:
        with given.out.open("a", encoding="utf-8") as file:

            def write(received: Received) -> None:
                message = received.message
                line = {
                    "message_id": received.message_id,
                    "to": received.recipients[0],
                    "sender": received.sender,
                    "subject": str(message["Subject"]),
                    "at": received.at_unix,
                }
                print(json.dumps(line), file=file, flush=True)

            with SmtpSink(
                host=given.host,
                port=given.port,
                refuse=given.refuse,
                defer_once=given.defer,
                rate_per_s=given.rate,
                on_message=write,
            ) as sink:
                print(f"listening on {sink.url}, writing to {given.out}", flush=True)
                end.wait()
    except SaqkitError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{given.out}: cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0
