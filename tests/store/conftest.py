"""A store of its own for every test, once on SQLite and once on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from saqkit.app.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with await Store.open(store_url) as opened:
        yield opened


@pytest.fixture
def statements() -> Callable[[], Any]:
    """`with statements() as seen`: every statement that this process sends to any database meanwhile."""

    @contextmanager
    def seen() -> Iterator[list[str]]:
        told: list[str] = []

        def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
            told.append(statement)

        sa.event.listen(sa.Engine, "before_cursor_execute", note)
        try:
            yield told
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", note)

    return seen
