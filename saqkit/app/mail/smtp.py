"""A real SMTP server: a pool of connections that stay open, and a careful reading of what it answers.

Whose fault is a refusal? Only an answer 5xx to the *recipient* or to the *message* is final for that user. The same
at the greeting, the log-in or the sender's address concerns us, not the user: it is temporary, the job is tried again
and ends as a dead letter that can be replayed once the settings are right.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import aiosmtplib

from saqkit.app.mail.message import Email, address_of
from saqkit.errors import DescriptionError, PermanentFailure, ProviderError, TemporaryFailure
from saqkit.spec.topology import Provider as ProviderSpec

__all__ = ["Server", "Smtp"]

_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_OURS = {421, 503, 530, 534, 535, 538}
"""Answers that concern the connection or the log-in, at whatever stage they come (RFC 5321, RFC 4954)."""
_REGROW_S = 60.0


@dataclass(frozen=True)
class Server:
    """Where an SMTP server is and how it is spoken to, read from an address by `parse`."""

    host: str
    port: int
    security: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str, key: str = "url") -> Server:
        """Read `smtp://[user:password@]host[:port]`, `smtp+starttls://…` (port 587) or `smtps://…` (port 465).

        `smtp` never encrypts; the others refuse a server whose certificate is not valid. Raises `DescriptionError`, in
        which `key` says where the address stood; it never shows the address itself, which may hold a password.
        """
        example = "such as smtp://127.0.0.1:2525 or smtp+starttls://user:password@mail.example:587"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise DescriptionError("the port is not a number from 1 to 65535", key=key, hint=example) from error
        if parts.scheme not in _PORTS:
            raise DescriptionError("is no smtp://, smtp+starttls:// or smtps:// address", key=key, hint=example)
        if not parts.hostname or port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
            raise DescriptionError("is no SMTP address: a host and at most a port are expected", key=key, hint=example)
        user, password = (unquote(part) if part else None for part in (parts.username, parts.password))
        if (user is None) != (password is None):
            raise DescriptionError("an SMTP log-in needs both a user and a password", key=key, hint=example)
        if re.search(r"[\x00-\x20\x7f]", f"{parts.hostname}{user or ''}{password or ''}"):
            raise DescriptionError("the address has a space or control character in it", key=key, hint=example)
        return cls(parts.hostname, port or _PORTS[parts.scheme], parts.scheme, user, password)


class Smtp:
    """Sends through a real server over at most `pool_size` connections, opened as they are needed and kept open.

    Opening and sending each end within the provider's `timeout_s`. A connection that the server closed in the
    meantime is replaced before anything is sent twice. Where the server accepts fewer connections than wanted, the
    sends share those that it does accept, and another one is tried a minute later.
    """

    def __init__(self, name: str, spec: ProviderSpec, *, pool_size: int = 20, key: str = "url") -> None:
        if spec.url is None:
            hint = 'such as "smtp://127.0.0.1:2525", or set SAQKIT_SMTP_URL'
            raise DescriptionError("is missing: an smtp provider needs it", key=key, hint=hint)
        self.name, self.sender = name, spec.sender
        self._server = Server.parse(spec.url, key)
        self._place = f"{name} ({self._server.host}:{self._server.port})"
        self._timeout_s = spec.timeout_s
        self._tls = None if self._server.security == "smtp" else ssl.create_default_context()
        self._room = asyncio.Semaphore(pool_size)
        self._idle: list[aiosmtplib.SMTP] = []
        self._busy = 0

    async def send(self, email: Email) -> None:
        """Hand `email` to the server; raises `TemporaryFailure` or `PermanentFailure` with its answer on one line."""
        content = bytes(email.to_message())
        while not await self._sent(email, content, [] if email.is_ascii else ["SMTPUTF8", "BODY=8BITMIME"]):
            pass

    async def close(self) -> None:
        """Take leave of the server on every idle connection; waits 2 s at most."""
        idle, self._idle = self._idle, []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await asyncio.gather(*(client.quit() for client in idle), return_exceptions=True)
        for client in idle:
            client.close()

    async def greet(self) -> str:
        """Connect, say EHLO and log in as for a send, and take leave; returns what was agreed, on one line.

        Raises `TemporaryFailure` with what the server answered.
        """
        try:
            client = await self._connect()
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            raise self._failure(error, on_user=False) from error
        encrypted = client.get_transport_info("ssl_object")
        said = [self._place, "EHLO" if client.supports_esmtp else "HELO"]
        with contextlib.suppress(aiosmtplib.SMTPException, OSError, TimeoutError):
            async with asyncio.timeout(2.0):
                await client.quit()
        client.close()
        said += [encrypted.version() if encrypted else "not encrypted", *(["logged in"] if self._server.user else [])]
        return ", ".join(said)

    async def _sent(self, email: Email, content: bytes, options: list[str]) -> bool:
        """Send on one connection; False if it turned out to be closed before anything of the message was said."""
        client, fresh = await self._acquire()
        on_user = usable = False
        try:
            if options and not client.supports_extension("smtputf8"):
                usable = True
                raise PermanentFailure(f"{self._place}: takes no address beyond ASCII, such as {email.to!r}")
            async with asyncio.timeout(self._timeout_s):
                try:
                    await client.mail(address_of(email.sender), options=options, encoding="utf-8")
                    on_user = True
                    await client.rcpt(email.to, encoding="utf-8")
                    await client.data(content)
                except aiosmtplib.SMTPResponseException as answer:
                    if answer.code != 421:
                        with contextlib.suppress(aiosmtplib.SMTPException, OSError):
                            await client.rset()
                            usable = True
                    raise
            usable = True
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            stale = isinstance(error, aiosmtplib.SMTPServerDisconnected) or getattr(error, "code", 0) == 421
            if stale and not fresh and not on_user:
                return False
            raise self._failure(error, on_user) from error
        finally:
            self._busy -= 1
            if usable:
                self._idle.append(client)
            else:
                client.close()
            self._room.release()
        return True

    async def _acquire(self) -> tuple[aiosmtplib.SMTP, bool]:
        """An open connection, and whether it is a fresh one; takes one place of the room."""
        while True:
            await self._room.acquire()
            while self._idle:
                if (client := self._idle.pop()).is_connected:
                    self._busy += 1
                    return client, False
            try:
                client = await self._connect()
                self._busy += 1
                return client, True
            except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
                if self._busy and getattr(error, "code", 0) == 421:  # too many: wait for one of those in use
                    asyncio.get_running_loop().call_later(_REGROW_S, self._room.release)
                    continue
                self._room.release()
                raise self._failure(error, on_user=False) from error
            except BaseException:
                self._room.release()
                raise

    async def _connect(self) -> aiosmtplib.SMTP:
        server = self._server
        client = aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            username=server.user,
            password=server.password,
            use_tls=server.security == "smtps",
            start_tls=server.security == "smtp+starttls",
            tls_context=self._tls,
            timeout=self._timeout_s,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await client.connect()
                if client.is_ehlo_or_helo_needed:
                    try:
                        await client.ehlo()
                    except aiosmtplib.SMTPHeloError:
                        await client.helo()
        except BaseException:
            client.close()
            raise
        return client

    def _failure(self, error: Exception, on_user: bool) -> ProviderError:
        if isinstance(error, aiosmtplib.SMTPResponseException):
            final = on_user and 500 <= error.code < 600 and error.code not in _OURS
            kind = PermanentFailure if final else TemporaryFailure
            return kind(f"{self._place}: {error.code} {self._one_line(error.message)}".rstrip())
        if isinstance(error, TimeoutError):
            return TemporaryFailure(f"{self._place}: no answer within {self._timeout_s:g} s")
        return TemporaryFailure(f"{self._place}: {self._one_line(str(error)) or type(error).__name__}")

    def _one_line(self, text: str) -> str:
        if self._server.password:
            text = text.replace(self._server.password, "***")
        return re.sub(r"[\s\x00-\x1f\x7f]+", " ", text.encode("utf-8", "replace").decode()).strip()[:300]
