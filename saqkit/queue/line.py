"""One connection over which calls go out as they come, and whose answers come in the order of the calls.

redis-py takes a connection from its pool for each call, looks whether it is sound, and waits with timers: most of what
a call costs. Here calls that overlap share a connection, one task reads all answers, and one timer watches them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

from saqkit.errors import SaqkitError
from saqkit.queue.connecting import Elsewhere

PATIENCE_S = 15.0
"""A server that does not answer for so long counts as away. No call blocks for longer on purpose."""

Words = Sequence[Any]


class Line:
    """Calls to the server of a client, over a connection of the client's pool that is kept."""

    def __init__(self, client: Redis) -> None:
        self.knows: set[str] = set()
        """Names of what the server at the other end has been told, since it was connected to."""
        self._pool = client.connection_pool
        self._connection: Any = None
        self._connecting = asyncio.Lock()
        self._open: deque[asyncio.Future[Any]] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._sound = False
        self._watch: asyncio.TimerHandle | None = None

    async def run(self, *commands: Words) -> list[Any]:
        """Send commands together; returns their answers, error replies as values.

        Raises redis-py's `ConnectionError` or `TimeoutError` where the server is away: then nobody knows what it has
        done. One that serves elsewhere by now is looked for, once.
        """
        try:
            return await self._run(commands)
        except Elsewhere:
            return await self._run(commands)

    async def call(self, *command: Any) -> Any:
        """The answer to one command; raises an error reply."""
        (answer,) = await self.run(command)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _run(self, commands: Sequence[Words]) -> list[Any]:
        connection = self._connection if self._sound else await self._connect()
        packed = connection.pack_commands(commands)  # what cannot be written fails here, and is owed no answer
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in commands]
        self._open.extend(futures)
        if self._watch is None:
            self._watch = loop.call_later(PATIENCE_S, self._look, futures[0])
        try:
            # Nothing comes between this and the writing, so that answers find their calls.
            await connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as error:
            self._lose(error)
        return [await future for future in futures]

    async def _connect(self) -> Any:
        async with self._connecting:
            if self._sound:
                return self._connection
            if self._reader is not None:
                await asyncio.wait([self._reader])
            if self._connection is None:
                self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # as redis-py is
            else:
                await self._connection.connect()
            self._connection.socket_timeout = None  # a line may be silent for long; one that owes an answer is watched
            self._reader = asyncio.create_task(self._read(self._connection), name="saqkit-line")
            self._sound = True
            self.knows = set()
            return self._connection

    async def _read(self, connection: Any) -> None:
        try:
            while True:
                try:
                    answer = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
                except ResponseError as error:
                    answer = error
                future = self._open.popleft()
                if not future.done():
                    future.set_result(answer)
        except Exception as error:  # whatever it is: those who wait must not wait for ever
            if self._open and isinstance(error, (Elsewhere, SaqkitError)):
                _fail(self._open.popleft(), error)
            self._lose(error)
        finally:
            await connection.disconnect(nowait=True)

    def _lose(self, error: Exception) -> None:
        """Nobody is answered any more; the next call connects anew."""
        self._sound = False
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        lost = error if isinstance(error, TimeoutError) else ConnectionError(f"connection lost: {error}")
        while self._open:
            _fail(self._open.popleft(), lost)

    def _look(self, first: asyncio.Future[Any]) -> None:
        """Give up on a server that has not answered since the last look."""
        self._watch = None
        if not first.done():
            self._lose(TimeoutError(f"no answer within {PATIENCE_S:g} s"))
        elif self._open:
            self._watch = asyncio.get_running_loop().call_later(PATIENCE_S, self._look, self._open[0])

    def drop(self) -> None:
        """Let go of the connection: open calls fail, the next one connects anew."""
        self._lose(ConnectionError("dropped"))

    async def close(self) -> None:
        """Give the connection back to the pool, closed."""
        self.drop()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._reader is not None:
            await asyncio.wait([self._reader])
            self._reader = None
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError):
                await self._pool.release(connection)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # whoever waited may have been cancelled
