"""Another system for tests: courses, profiles and places over HTTP on loopback, which fails as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Trouble = Callable[[int, str], str]
"""For the n-th question (from 1) of a path: what goes wrong, "" if nothing."""


class StubSource:
    """`courses` come in pages of `page`; `asked` are the paths of all questions. `release` ends what "hangs"."""

    def __init__(self, page: int = 2) -> None:
        self.courses: list[dict[str, Any]] = []
        self.profiles: dict[str, Any] = {}
        self.places: dict[str, list[str]] = {}
        self.page, self.asked, self.tokens = page, list[str](), set[str | None]()
        self.trouble: Trouble = lambda number, path: ""
        self.hangs, self.release, self.url = threading.Event(), threading.Event(), ""

    def answer(self, address: str) -> Any:
        parts = urlsplit(address)
        _, kind, *rest = parts.path.removeprefix("/api").split("/")
        if kind == "profiles":
            return {"profile": self.profiles.get(unquote(rest[0]))}
        if kind == "enrolments":
            return {"courses": self.places.get(unquote(rest[0]), [])}
        start = int(parse_qs(parts.query).get("after", ["0"])[0])
        following = start + self.page if start + self.page < len(self.courses) else None
        return {"courses": self.courses[start : start + self.page], "next": following and str(following)}


@contextmanager
def stub_source(page: int = 2) -> Iterator[StubSource]:
    """A source on a port of its own; its address is `url`."""
    stub, lock = StubSource(page), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                stub.asked.append(self.path)
                stub.tokens.add(self.headers["Authorization"])
                trouble = stub.trouble(len(stub.asked), self.path)
            if trouble == "hangs":
                stub.hangs.set()
                stub.release.wait(30)
                trouble = "breaks"
            if trouble == "breaks":
                return  # the connection ends without an answer
            body = json.dumps(stub.answer(self.path)).encode()
            self.send_response(int(trouble) if trouble.isdigit() else 200)
            self.send_header("Location", f"{stub.url}/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if trouble == "nonsense":
                body = b"<" * len(body)
            self.wfile.write(body[: len(body) // 2] if trouble == "half" else body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/api"
    try:
        yield stub
    finally:
        stub.release.set()
        server.shutdown()
        thread.join()
        server.server_close()
