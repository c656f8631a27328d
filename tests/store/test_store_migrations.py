"""A database of the first shape is carried over without loss, once, and both ways lead to the same tables."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool, inspect, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from saqkit.app import tables
from saqkit.app.audience import Audience
from saqkit.app.shop.money import Money
from saqkit.app.shop.orders import NewOrder, Orders
from saqkit.app.store import Progress, Recipient, Store, UserRow
from saqkit.errors import StoreError

# What the first version of saqkit made; {id} is how a database numbers rows by itself, {last} what ends the ledger.
FIRST = """
CREATE TABLE saqkit_schema (version INTEGER NOT NULL);
CREATE TABLE users (id {id}, email TEXT NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL, tenant TEXT NOT NULL,
 active BOOLEAN NOT NULL, UNIQUE (tenant, email));
CREATE TABLE events (id {id}, key TEXT, topic TEXT NOT NULL, title TEXT NOT NULL, body TEXT NOT NULL,
 audience TEXT NOT NULL, tenant TEXT NOT NULL, created_at {double} NOT NULL, UNIQUE (tenant, key));
CREATE TABLE outbox (event_id INTEGER NOT NULL, created_at {double} NOT NULL, delivered_at {double},
 PRIMARY KEY (event_id), FOREIGN KEY(event_id) REFERENCES events (id));
CREATE INDEX outbox_undelivered ON outbox (event_id) WHERE delivered_at IS NULL;
CREATE TABLE fan_outs (event_id INTEGER NOT NULL, job_type TEXT NOT NULL, cursor INTEGER NOT NULL,
 batches INTEGER NOT NULL, users INTEGER NOT NULL, finished_at {double},
 PRIMARY KEY (event_id, job_type), FOREIGN KEY(event_id) REFERENCES events (id));
CREATE TABLE notifications (event_id INTEGER NOT NULL, user_id INTEGER NOT NULL, channel TEXT NOT NULL,
 status TEXT NOT NULL, message_id TEXT NOT NULL, error TEXT NOT NULL, sent_at {double},
 PRIMARY KEY (event_id, user_id, channel),
 CONSTRAINT notifications_status CHECK (status IN ('pending', 'sent', 'failed'))){last};
INSERT INTO saqkit_schema VALUES (1);
INSERT INTO users (email, name, role, tenant, active) VALUES
 ('ada@school.example', 'Ada', 'student', 'north', TRUE), ('ben@school.example', 'Ben', 'parent', '', TRUE),
 ('eve@school.example', 'Eve', 'teacher', 'harbour', FALSE);
INSERT INTO events (key, topic, title, body, audience, tenant, created_at) VALUES
 ('k', 't', 'Sports day', 'Come', '{{"roles": [], "tenant": "", "first_n": null, "nobody": false}}', 'south', 1.5);
INSERT INTO outbox VALUES (1, 1.5, NULL);
INSERT INTO fan_outs VALUES (1, 'announce', 2, 1, 2, 3.5);
INSERT INTO notifications VALUES (1, 1, 'email', 'sent', '<1.1@x>', '', 2.5), (1, 2, 'email', 'pending', '', '', NULL);
"""
KINDS = {
    "sqlite": {"id": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT", "double": "DOUBLE", "last": " WITHOUT ROWID"},
    "postgresql": {"id": "SERIAL PRIMARY KEY", "double": "DOUBLE PRECISION", "last": ""},
}


async def make_first(url: str) -> None:
    address = make_url(url)
    kind = address.get_backend_name()
    ddl = FIRST.format(**KINDS[kind])
    if kind == "sqlite":
        with sqlite3.connect(str(address.database)) as connection:
            connection.executescript("PRAGMA journal_mode = WAL;" + ddl)
        connection.close()
        return
    engine = create_async_engine(address, poolclass=NullPool)
    async with engine.begin() as begun:
        for statement in filter(str.strip, ddl.split(";\n")):
            await begun.exec_driver_sql(statement)
    await engine.dispose()


def shape(connection: Connection) -> dict[str, Any]:
    """Everything that distinguishes two sets of tables, as the database itself tells it."""
    seen = inspect(connection)
    return {
        name: {
            "columns": [(column["name"], str(column["type"]), column["nullable"]) for column in seen.get_columns(name)],
            "key": seen.get_pk_constraint(name)["constrained_columns"],
            "unique": sorted(tuple(unique["column_names"]) for unique in seen.get_unique_constraints(name)),
            "indexes": sorted((str(index["name"]), index["unique"]) for index in seen.get_indexes(name)),
            "foreign": sorted(
                (tuple(key["constrained_columns"]), key["referred_table"]) for key in seen.get_foreign_keys(name)
            ),
            "checks": sorted(str(check["name"]) for check in seen.get_check_constraints(name)),
        }
        for name in seen.get_table_names()
    }


async def test_a_database_of_the_first_version_is_carried_over_without_loss(store_url: str) -> None:
    await make_first(store_url)
    async with await Store.open(store_url) as store:
        assert await store._database.read(lambda c: c.execute(tables.schema.select()).scalars().all()) == [
            tables.VERSION
        ]
        assert await store.count_users() == 2  # Eve is not active
        assert (await store.begin_batch(1, [1, 2], "email")).pending == [Recipient(2, "ben@school.example", "Ben")]
        assert await store.progress(1) == Progress(2, 1, 1, 0, 50.0, fan_out_finished=True)
        event = await store.event(1)
        assert event is not None
        assert (event.key, event.title, event.audience, event.created_at) == ("k", "Sports day", Audience(), 1.5)
        assert await store.undelivered() == [1]
        # Who has people is a tenant, as in a database that is made anew; an event alone makes nobody one.
        assert [tenant.name for tenant in await store.tenants.all()] == ["harbour", "north"]
        # And it works from there on: ids go on, new tables take rows.
        assert await store.add_users([UserRow("kim@school.example", tenant="west")]) == 1
        assert (await store.announce(title="T", topic="t", audience=Audience(), created_at=2.0)).event_id == 2
        await store.tenants.add_institution("north", "main")
        assert (await store.attendance.mark("north", "main", date(2026, 3, 2), {1: "late"})).new == 1
        wanted = NewOrder(1, Money(5, "EUR"), "payment", "checkout", "T", "")
        order, new = await Orders(store.database).add(wanted, 3.0)
        assert (order.id, new) == (1, True)
    async with await Store.open(store_url) as again:
        assert [tenant.name for tenant in await again.tenants.all()] == ["harbour", "north", "west"]


async def test_carried_over_and_made_anew_are_the_same_tables(store_url: str, tmp_path: Path) -> None:
    await make_first(store_url)

    def differences(connection: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), tables.metadata))

    async with await Store.open(store_url) as store:
        carried = await store._database.read(shape)
        assert await store._database.read(differences) == []
        if store._database.dialect == "postgresql":
            await store._database.write(lambda connection: connection.execute(text("DROP SCHEMA public CASCADE")))
            await store._database.write(lambda connection: connection.execute(text("CREATE SCHEMA public")))
    fresh_url = store_url.replace("store.db", "fresh.db")
    async with await Store.open(fresh_url) as fresh:
        assert await fresh._database.read(shape) == carried
    assert set(carried) == set(tables.metadata.tables)
    if store_url.startswith("sqlite"):  # these two are not told by inspection
        told = []
        for name in ("store.db", "fresh.db"):
            with sqlite3.connect(tmp_path / name) as file:
                words = dict(file.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall())
            file.close()
            kinds = ("AUTOINCREMENT", "WITHOUT ROWID")
            told.append({table: [kind in words[table] for kind in kinds] for table in carried})
        assert told[0] == told[1]


async def test_several_processes_carry_a_database_over_once(store_url: str) -> None:
    await make_first(store_url)
    opening = "import asyncio, sys; from saqkit.app.store import Store; asyncio.run(Store.open(sys.argv[1]))"
    openers = [
        subprocess.Popen([sys.executable, "-c", opening, store_url], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ends = await asyncio.gather(*(asyncio.to_thread(opener.communicate, None, 60) for opener in openers))
    assert [(opener.returncode, errors) for opener, (_, errors) in zip(openers, ends, strict=True)] == [(0, "")] * 4
    async with await Store.open(store_url) as store:
        assert len(await store.tenants.all()) == 2


async def test_a_migration_that_fails_leaves_the_database_as_it_was(store_url: str) -> None:
    await make_first(store_url)
    address = make_url(store_url)
    # Somebody else's table is in the way of the last of the new ones.
    if address.get_backend_name() == "sqlite":
        with sqlite3.connect(str(address.database)) as connection:
            connection.execute("CREATE TABLE audit (mine TEXT)")
        connection.close()
    else:
        engine = create_async_engine(address, poolclass=NullPool)
        async with engine.begin() as begun:
            await begun.execute(text("CREATE TABLE audit (mine TEXT)"))
        await engine.dispose()
    for _ in range(2):
        with pytest.raises(StoreError, match=r'"?audit"? already exists') as caught:
            await Store.open(store_url)
        assert "\n" not in str(caught.value)
    if address.get_backend_name() == "sqlite":
        with sqlite3.connect(str(address.database)) as connection:
            names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            assert connection.execute("SELECT version FROM saqkit_schema").fetchall() == [(1,)]
        connection.close()
        assert names & {"tenants", "orders"} == set()


async def test_a_database_of_a_newer_saqkit_is_refused(store_url: str) -> None:
    async with await Store.open(store_url) as store:
        await store._database.write(lambda c: c.execute(tables.schema.update().values(version=99)))
    with pytest.raises(StoreError, match=r"was made by a newer saqkit \(schema 99, this one knows 5\); update saqkit"):
        await Store.open(store_url)


@pytest.mark.parametrize(("older", "imported"), [(False, "False"), (True, "True")])
async def test_alembic_is_imported_only_where_something_is_to_be_carried_over(
    older: bool, imported: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    if older:
        await make_first(url)
    code = (
        "import asyncio, sys; from saqkit.app.store import Store; asyncio.run(Store.open(sys.argv[1]));"
        " print('alembic' in sys.modules)"
    )
    for expected in (imported, "False"):  # the second time nothing is to be done
        done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


async def test_a_restored_copy_that_is_not_in_wal_mode_is_put_into_it(tmp_path: Path) -> None:
    url, copy = f"sqlite:///{tmp_path}/store.db", tmp_path / "copy.db"
    async with await Store.open(url) as store:
        await store.add_users([UserRow("ada@school.example")])
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    connection.close()
    async with await Store.open(f"sqlite:///{copy}") as restored:
        mode = await restored._database.read(lambda c: c.exec_driver_sql("PRAGMA journal_mode").scalar())
        assert (mode, await restored.count_users()) == ("wal", 1)
