"""The ledger writer of one process: results of many sends in few transactions."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from saqkit.app.store import SendResult, Store
from saqkit.errors import StoreError

_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 2.0


class Ledger:
    """Collects results and writes them together: group commit.

    A result is committed `flush_every_s` after it was added at the latest (0.1 s: what a killed process may repeat), or
    at once if somebody waits in `flush`. All who wait share one transaction. A transaction that fails is repeated, with
    growing pauses, until it succeeds: writing a result twice changes nothing, so none is lost and none counts double.
    Who waits in `flush` or `close` gets a `StoreError` after `give_up_s`; the results are still kept and tried. While a
    result has waited for longer than `patience_s`, the ledger is `behind`.
    """

    def __init__(
        self, store: Store, flush_every_s: float = 0.1, *, give_up_s: float = 30.0, patience_s: float = 0.5
    ) -> None:
        self._store = store
        self._flush_every_s = flush_every_s
        self._give_up_s = give_up_s
        self._patience_s = patience_s
        self._buffer: list[SendResult] = []
        self._writing: list[SendResult] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._filled = asyncio.Event()
        self._hurry = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._trouble = ""
        self._buffered_at = self._written_from = 0.0

    @property
    def unwritten(self) -> int:
        """Results that are not committed yet."""
        return len(self._buffer) + len(self._writing)

    @property
    def behind(self) -> bool:
        """Whether the database does not take results: who sends more now would repeat it all if this process died."""
        if not self.unwritten:
            return False
        return time.monotonic() - (self._written_from if self._writing else self._buffered_at) > self._patience_s

    def add(self, result: SendResult) -> None:
        """Keep a result for the next transaction; never waits. To be called in the loop that uses the store."""
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write(), name="saqkit-ledger")
        if not self._buffer:
            self._buffered_at = time.monotonic()
        self._buffer.append(result)
        self._filled.set()

    async def flush(self) -> None:
        """Returns when everything that was added so far is committed."""
        if not self.unwritten:
            return
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._hurry.set()
        self._filled.set()
        try:
            await asyncio.wait_for(done, self._give_up_s)
        except TimeoutError as error:
            why = self._trouble or "no answer"
            raise StoreError(
                f"{self.unwritten} results could not be written for {self._give_up_s:g} s: {why}"
            ) from error

    async def close(self) -> None:
        """Flush and stop; nothing may be added afterwards. `StoreError` if results could not be written."""
        try:
            await self.flush()
        finally:
            if self._writer is not None:
                self._writer.cancel()
                await asyncio.wait([self._writer])

    async def _write(self) -> None:
        while True:
            await self._filled.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self._flush_every_s)
            self._writing, self._buffer = self._buffer, []
            self._written_from = self._buffered_at
            waiting, self._waiting = self._waiting, []
            self._filled.clear()
            self._hurry.clear()
            await self._commit()
            for done in waiting:
                if not done.done():
                    done.set_result(None)

    async def _commit(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await self._store.record_results(self._writing)
            except Exception as error:  # whatever it is, the results stay and those who wait are told
                self._trouble = str(error) if isinstance(error, StoreError) else f"{type(error).__name__}: {error}"
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _LAST_BACKOFF_S)
            else:
                self._writing, self._trouble = [], ""
                return
