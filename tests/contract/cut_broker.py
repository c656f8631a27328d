"""A server whose power can fail: what its append-only file got last is cut off."""

from __future__ import annotations

import time
from pathlib import Path

from redis import Redis

from saqkit.broker import PrivateBroker, find_binary
from saqkit.broker_server import Broker


class CutBroker(PrivateBroker):
    """`PrivateBroker` with a power switch. It runs with `appendfsync everysec`, as every server of saqkit's."""

    def start(self) -> Broker:
        broker = super().start()
        self.url = broker.url
        return broker

    def written(self) -> int:
        """How many bytes of history the server has written, once nothing is left in its buffer."""
        with Redis.from_url(self.url) as client:
            while client.info("persistence")["aof_buffer_length"]:
                pass
        return self.history().stat().st_size

    def history(self) -> Path:
        """The append-only file that grows: one file up to Redis 6, the incremental one of several since 7."""
        assert self._folder is not None
        files = [*self._folder.glob("appendonlydir/*.incr.aof"), *self._folder.glob("appendonly.aof")]
        return max(files, key=lambda path: path.stat().st_mtime)

    def lose_power(self, keeps: int) -> int:
        """End the server, keep only the first bytes of what it wrote, start it again; returns how many were lost."""
        self._end(b"keep\n")
        history = self.history()
        lost = history.stat().st_size - keeps
        with history.open("r+b") as file:
            file.truncate(keeps)
        self._begin(find_binary())
        self._rewrite()
        return lost

    def _rewrite(self) -> None:
        """As docs/contract.md tells: the beginning of a transaction that was cut stays in the file until this."""
        with Redis.from_url(self.url) as client:
            client.bgrewriteaof()
            while any(client.info("persistence")[f"aof_rewrite_{is_}"] for is_ in ("scheduled", "in_progress")):
                time.sleep(0.01)
