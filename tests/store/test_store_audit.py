"""The audit log: appended, read newest first, by tenant."""

from __future__ import annotations

from typing import Any

import pytest

from saqkit.app.store import Store
from saqkit.app.store.audit_log import Entry
from saqkit.errors import UsageError


@pytest.mark.row("004.15")
async def test_entries_are_read_as_they_were_written_newest_first(store: Store) -> None:
    first = await store.audit.append(actor="ada", action="queue.pause", target="email", tenant="north", at=5.0)
    await store.audit.append(actor="eve", action="queue.clear", tenant="south")
    second = await store.audit.append(
        actor="ben", action="job.retry", target="notify:7:0", tenant="north", detail={"jobs": 3, "why": "späť"}, at=6.0
    )
    assert await store.audit.of_tenant("north") == [
        Entry(second, "north", 6.0, "ben", "job.retry", "notify:7:0", {"jobs": 3, "why": "späť"}),
        Entry(first, "north", 5.0, "ada", "queue.pause", "email", {}),
    ]
    assert [entry.actor for entry in await store.audit.of_tenant("south")] == ["eve"]
    assert await store.audit.of_tenant("") == []


async def test_a_long_log_is_paged(store: Store) -> None:
    made = [await store.audit.append(actor="ada", action="queue.pause", tenant="north") for _ in range(5)]
    seen: list[int] = []
    while page := await store.audit.of_tenant("north", before=seen[-1] if seen else None, limit=2):
        seen += [entry.id for entry in page]
    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"actor": ""}, "needs an actor and an action"),
        ({"action": ""}, "needs an actor and an action"),
        ({"detail": {"at": object()}}, "has to be JSON: .*not JSON serializable"),
        ({"detail": {"share": float("nan")}}, "has to be JSON"),
    ],
)
async def test_an_entry_that_says_nothing_is_refused(store: Store, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        await store.audit.append(**{"actor": "ada", "action": "queue.pause", **given})
    assert await store.audit.of_tenant("") == []
