"""A replica serves audiences and nothing else; what cannot be one is refused."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from saqkit.app.audience import Audience
from saqkit.app.location import replica_url
from saqkit.app.store import Store, UserRow
from saqkit.errors import StoreError


@pytest.fixture
async def copy_url(postgres_url: str) -> AsyncIterator[str]:
    """A second database of the same server, which stands for a replica that is behind: it has another person."""
    main = make_url(postgres_url)
    name = f"{main.database}_copy"
    engine = create_async_engine(main, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(f"CREATE DATABASE {name}"))
        url = main.set(database=name).render_as_string(hide_password=False)
        yield url
        await connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
    await engine.dispose()


@pytest.mark.row("003.8")
async def test_audiences_are_read_from_the_replica_and_all_else_from_the_main_database(
    postgres_url: str, copy_url: str
) -> None:
    async with await Store.open(copy_url) as copy:
        await copy.add_numbered_users(3)
    async with await Store.open(postgres_url, replica_url=copy_url) as store:
        await store.add_numbered_users(7)
        assert await store.audience_page(Audience(), 0, 100) == [1, 2, 3]
        assert await store.count_users() == 7
        event = (await store.announce(title="T", topic="t", audience=Audience(), created_at=1.0)).event_id
        assert len((await store.begin_batch(event, range(1, 8), "email")).pending) == 7
        assert await store.undelivered() == [event]
    async with await Store.open(copy_url) as copy:
        assert (await copy.count_users(), await copy.undelivered()) == (3, [])


async def test_nothing_can_be_written_to_the_replica(postgres_url: str, copy_url: str) -> None:
    await (await Store.open(copy_url)).close()
    async with await Store.open(postgres_url, replica_url=copy_url) as store:
        assert store._replica is not None
        with pytest.raises(StoreError, match="read-only transaction"):
            await store._replica.write(lambda connection: connection.execute(text("DELETE FROM users")))


async def test_while_the_replica_is_away_audiences_come_from_the_main_database(
    postgres_url: str, copy_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await (await Store.open(copy_url)).close()
    async with await Store.open(postgres_url, replica_url=copy_url) as store, await Store.open(postgres_url) as other:
        await store.add_users([UserRow("ada@school.example")])
        assert await store.audience_page(Audience(), 0, 100) == []
        name = make_url(copy_url).database
        away = text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        hide = text(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        await other._database.write(lambda connection: connection.execute(hide))
        await other._database.write(lambda connection: connection.execute(away).all())
        with caplog.at_level(logging.WARNING, "saqkit"):
            assert await store.audience_page(Audience(), 0, 100) == [1]
        assert "the audience is read from the main database, not from the replica: postgresql" in caplog.text
        back = text(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
        await other._database.write(lambda connection: connection.execute(back))
        assert await store.audience_page(Audience(), 0, 100) == []


async def test_a_database_without_our_tables_is_no_replica(
    postgres_url: str, copy_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saqkit.app.database.REPLICA_LAG_S", 0.2)
    with pytest.raises(StoreError, match=r"has no tables of saqkit, .* has schema \d: it is not its replica, or far"):
        await Store.open(postgres_url, replica_url=copy_url)


async def test_a_replica_of_another_kind_or_nowhere_is_refused(postgres_url: str, tmp_path: Path) -> None:
    for url, message in [
        (f"sqlite:///{tmp_path}/r.db", r"a SQLite file is no replica of postgresql.*: name a PostgreSQL"),
        ("postgresql://nobody:geheim@127.0.0.1:1/none", "is not reachable"),
        ("replica.example", "is not the address of a database"),
    ]:
        with pytest.raises(StoreError, match=message) as caught:
            await Store.open(postgres_url, replica_url=url)
        assert "\n" not in str(caught.value)
        assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("replica", ["sqlite:///other.db", "postgresql://localhost/school"])
async def test_sqlite_has_no_replicas(replica: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"store\.db: SQLite has no replicas; unset SAQKIT_REPLICA_URL, or use Postg"):
        await Store.open(f"sqlite:///{tmp_path}/store.db", replica_url=replica)
    assert not (tmp_path / "other.db").exists()


def test_the_environment_names_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replica_url() is None
    monkeypatch.setenv("SAQKIT_REPLICA_URL", "")
    assert replica_url() is None
    monkeypatch.setenv("SAQKIT_REPLICA_URL", "postgresql://replica.example/school")
    assert replica_url() == "postgresql://replica.example/school"


@pytest.mark.parametrize("command", ["worker", "announce --title T --audience all"])
def test_a_replica_of_sqlite_ends_a_command_with_status_2(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str
) -> None:
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.setenv("SAQKIT_REPLICA_URL", "postgresql://localhost/school")
    words = [sys.executable, "-m", "saqkit.cli", *command.split(), "--redis", redis_url]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "SQLite has no replicas" in line
