"""The read cache: bounded, not for ever, and it does remove reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from saqkit.app.audience import Audience
from saqkit.app.store import Store
from saqkit.app.store.remembered import Remembered


def test_the_oldest_makes_room_and_nothing_is_kept_for_ever() -> None:
    now = 0.0
    remembered = Remembered[int, str](bound=2, keep_s=60.0, clock=lambda: now)
    remembered.keep(1, "one")
    remembered.keep(2, "two")
    remembered.keep(1, "uno")  # is the newer one now
    remembered.keep(3, "three")
    assert [remembered.get(key) for key in (1, 2, 3)] == ["uno", None, "three"]
    now = 59.9
    assert remembered.get(3) == "three"
    now = 60.0
    assert remembered.get(3) is None


@pytest.mark.row("004.13")
async def test_an_event_is_not_read_again_by_who_announced_or_served_it(
    store: Store, store_url: str, statements: Callable[[], Any]
) -> None:
    await store.add_numbered_users(300)
    with statements() as seen:
        event = (await store.announce(title="T", topic="t", audience=Audience(), created_at=7.5, key="k")).event_id
        row = await store.event(event)
    assert [statement for statement in seen if "FROM events" in statement] == []
    async with await Store.open(store_url) as worker:  # another process has not seen it
        with statements() as seen:
            for first in range(1, 300, 10):
                assert await worker.event(event) == row
                await worker.begin_batch(event, range(first, first + 10), "email")
        assert len([statement for statement in seen if "FROM events" in statement]) == 1


async def test_what_does_not_exist_is_looked_for_again(store: Store, store_url: str) -> None:
    assert await store.event(1) is None
    async with await Store.open(store_url) as other:
        await other.announce(title="T", topic="t", audience=Audience(), created_at=7.5)
    assert await store.event(1) is not None
