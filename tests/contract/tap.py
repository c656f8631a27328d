"""A tap in the line between clients and a server: it can lose one answer, and the connection with it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Tap:
    """Passes on what clients of `url` say to the server at the unix socket `path`, and its answers, one by one.

    `lose(n)`: the n-th answer from now on never arrives, and its connection is closed: the server has done what it was
    asked to, and nobody is told. `lost`: whether that has happened. `answers` counts those of all connections.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.Task[None]] = set()
        self._losing = 0
        self.answers, self.lost = 0, False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for line in list(self._lines):
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    def lose(self, number: int) -> None:
        self._losing, self.lost, self.answers = number, False, 0

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line is not None
        self._lines.add(line)
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._path)
            ways = [
                asyncio.create_task(self._say(reader, server_writer)),
                asyncio.create_task(self._answer(server_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                server_writer.close()
        except OSError:
            pass
        finally:
            writer.close()
            self._lines.discard(line)

    @staticmethod
    async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What the server writes at once is one answer, or all those to a pipeline, or the part of a long one."""
        while data := await reader.read(65_536):
            self.answers += 1
            if self.answers == self._losing:
                self.lost = True
                return
            writer.write(data)
            await writer.drain()
