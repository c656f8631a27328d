"""Another system, asked over HTTP: every answer comes within a time, has a length, and is checked, or is a failure.

Its face (JSON; `{url}` is SAQKIT_SYNC_URL):

    GET {url}/courses?after=CURSOR&limit=100   {"courses": [{"id", "title", "next_lesson_at"}], "next": CURSOR or null}
    GET {url}/profiles/EMAIL                   {"profile": {…} or null}
    GET {url}/enrolments/EMAIL                 {"courses": [ID, …]}
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from saqkit.errors import DescriptionError, PermanentFailure, TemporaryFailure

PAGE = 100
"""Courses asked for at once."""
LONGEST = 5_000_000
"""Bytes of an answer: a page has some 10 kB, and whoever sends more than this has not understood the question."""
THREADS = 8
_RETRIED = (408, 425, 429)
_HINT = "such as https://moodle.example/api"


@dataclass(frozen=True, slots=True)
class CourseRow:
    """A course as its source tells it; `next_lesson_at` in seconds since the epoch, None if there is none."""

    source_id: str
    title: str
    next_lesson_at: float | None


class Source:
    """The system at `address`; with a `token`, that is sent as `Authorization: Bearer`."""

    def __init__(self, address: str, token: str = "") -> None:
        # Whose value is wrong is not shown: it may have a password in it.
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise DescriptionError("is no address", key="SAQKIT_SYNC_URL", hint=_HINT) from None
        if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
            raise DescriptionError("is no http:// or https:// address of a host and a path", key="SAQKIT_SYNC_URL",
                                   hint=f"{_HINT}; a password belongs into SAQKIT_SYNC_TOKEN")  # fmt: skip
        if not token.isascii() or not token.isprintable():
            raise DescriptionError("is no token", key="SAQKIT_SYNC_TOKEN", hint="one line of ASCII")
        self.where = f"{parts.scheme}://{parts.netloc}"
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = host, port, parts.path.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "saqkit"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._threads = ThreadPoolExecutor(THREADS, "saqkit-sync")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Source | None:
        """The source that `SAQKIT_SYNC_URL` names, if it does; `SAQKIT_SYNC_TOKEN` goes with it."""
        address = environ.get("SAQKIT_SYNC_URL")
        return cls(address, environ.get("SAQKIT_SYNC_TOKEN") or "") if address else None

    async def courses(self, after: str, timeout_s: float) -> tuple[list[CourseRow], str | None]:
        """The courses behind the cursor `after` ("": from the beginning), and the next cursor, None at the end."""
        query = {"limit": str(PAGE)} | ({"after": after} if after else {})
        path = f"/courses?{urlencode(query)}"
        said = await self._ask(path, timeout_s)
        following = said.get("next")
        if following is not None and (not isinstance(following, str) or following in ("", after)):
            raise self._nonsense(path, "next leads nowhere")
        return [self._course(path, one) for one in self._list(path, said, "courses")], following

    async def profile(self, email: str, timeout_s: float) -> dict[str, Any] | None:
        """What the source says of a person, None if nothing."""
        path = f"/profiles/{quote(email, safe='')}"
        said = await self._ask(path, timeout_s)
        profile = said.get("profile", "missing")
        if profile is not None and not isinstance(profile, dict):
            raise self._nonsense(path, "profile is no object")
        return profile

    async def enrolments(self, email: str, timeout_s: float) -> list[str]:
        """The ids, as the source has them, of all courses in which a person has a place there."""
        path = f"/enrolments/{quote(email, safe='')}"
        return [
            self._text(path, one, "courses") for one in self._list(path, await self._ask(path, timeout_s), "courses")
        ]

    async def close(self) -> None:
        """Wait for nothing: a question that is under way ends by its own timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _ask(self, path: str, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):  # of it all: also of the wait for a thread, and for names
                status, body = await loop.run_in_executor(self._threads, self._get, path, deadline)
        except (OSError, http.client.HTTPException, TimeoutError) as error:
            words = str(error) or f"no answer within {timeout_s:g} s"
            raise TemporaryFailure(f"{self._of(path)}: {' '.join(words.split())}") from error
        if status in _RETRIED or status >= 500:
            raise TemporaryFailure(f"{self._of(path)}: {status}")
        if status != 200:
            raise PermanentFailure(f"{self._of(path)}: {status}")
        try:
            said = json.loads(body)
        except ValueError as error:  # half an answer, or a page that begs for patience: another one may be whole
            raise self._nonsense(path, "the answer is no JSON") from error
        if not isinstance(said, dict):
            raise self._nonsense(path, "the answer is no object")
        return said

    def _get(self, path: str, deadline: float) -> tuple[int, bytes]:
        """One question on a connection of its own: its status and body. Redirects are not followed: the token would be
        told to whoever is named."""
        connection = self._kind(self._host, self._port, timeout=_left_s(deadline))
        try:
            connection.request("GET", self._path + path, headers=self._headers)
            answer = connection.getresponse()
            parts, length = [], 0
            while part := answer.read1(65_536):
                parts.append(part)
                length += len(part)
                if length > LONGEST:
                    raise http.client.HTTPException(f"the answer is longer than {LONGEST:,} bytes")
                if connection.sock is not None:  # None: the server ends the connection behind this answer
                    connection.sock.settimeout(_left_s(deadline))
                else:
                    _left_s(deadline)
            if answer.length:  # read1 takes a broken connection for the end
                raise http.client.IncompleteRead(b"".join(parts), answer.length)
            return answer.status, b"".join(parts)
        finally:
            connection.close()

    def _course(self, path: str, one: Any) -> CourseRow:
        if not isinstance(one, dict):
            raise self._nonsense(path, "a course is no object")
        at = one.get("next_lesson_at")
        if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at)):
            raise self._nonsense(path, "next_lesson_at is no time in seconds")
        title = self._text(path, one.get("title"), "title")
        return CourseRow(self._text(path, one.get("id"), "id"), title, None if at is None else float(at))

    def _list(self, path: str, said: Mapping[str, Any], name: str) -> Sequence[Any]:
        found = said.get(name)
        if not isinstance(found, list):
            raise self._nonsense(path, f"{name} is no list")
        return found

    def _text(self, path: str, value: object, name: str) -> str:
        if not isinstance(value, str) or not value or len(value) > 500 or not value.isprintable():
            raise self._nonsense(path, f"{name} is no text of one line, at most 500 characters")
        return value

    def _nonsense(self, path: str, why: str) -> TemporaryFailure:
        return TemporaryFailure(f"{self._of(path)}: {why}")

    def _of(self, path: str) -> str:
        """What was asked, without whom it is about: it is logged."""
        return f"{self.where}{self._path}/{path.lstrip('/').partition('?')[0].partition('/')[0]}"


def _left_s(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer took too long")
    return left
