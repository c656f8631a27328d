"""Many processes and tasks on one database: nobody is told that it is locked, and the pool is kept to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from saqkit.app.audience import Audience
from saqkit.app.shop.orders import Orders
from saqkit.app.store import Progress, Store

# Each writes all that a worker and an application write, five of it at a time, while others read.
WRITER = textwrap.dedent("""
    import asyncio, sys, time
    from datetime import date, timedelta
    from saqkit.app.audience import Audience
    from saqkit.app.ledger import Ledger
    from saqkit.app.shop.money import Money
    from saqkit.app.shop.orders import NewOrder, Orders, Settlement
    from saqkit.app.store import SendResult, Store

    async def main(url: str, event: int, mine: int) -> None:
        async with await Store.open(url) as store:
            print("ready", flush=True)
            sys.stdin.readline()
            ledger, orders, done = Ledger(store), Orders(store.database), 0

            async def slot(n: int) -> None:
                nonlocal done
                while time.time() < ends and done < 1_000:
                    number, done = mine * 1_000 + done, done + 1
                    first = number * 20
                    recipients = (await store.begin_batch(event, range(first + 1, first + 21), "email")).pending
                    assert len(recipients) == 20
                    for r in recipients:
                        ledger.add(SendResult(event, r.user, "email", "sent", f"<{r.user}>", sent_at=time.time()))
                        await asyncio.sleep(0)
                    await ledger.flush()
                    assert len(await store.audience_page(Audience(tenant="north"), first, 10)) == 10
                    money, key = Money(number + 1, "EUR"), str(number)
                    wanted = NewOrder(first + 1, money, "payment", "checkout", "T", "", key=key)
                    order, new = await orders.add(wanted, time.time())
                    paid = Settlement(order, "paid", f"charge {number}", "", time.time())
                    assert new and await orders.settle([paid], "api.payment") == 1
                    # All mark one day after the other of the same three pupils.
                    day = date(2026, 1, 1) + timedelta(days=number % 1_000)
                    await store.attendance.mark("north", "main", day, {1: "present", 4: "late", 7: "absent"})
                    await store.audit.append(actor=f"writer {mine}", action="order.paid", tenant="north")

            ends = time.time() + 2
            await asyncio.gather(*(slot(n) for n in range(5)))
            await ledger.close()
            print(done, flush=True)

    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
""")


@pytest.mark.row("004.13")
async def test_four_processes_write_one_database_without_a_lock_error(store_url: str) -> None:
    async with await Store.open(store_url) as store:
        await store.add_numbered_users(90_000)
        await store.tenants.add_institution("north", "main")
        event = (await store.announce(title="T", topic="t", audience=Audience(), created_at=7.5)).event_id
        command = [sys.executable, "-c", WRITER, store_url, str(event)]
        pipe = subprocess.PIPE
        writers = [
            subprocess.Popen([*command, str(n)], stdin=pipe, stdout=pipe, stderr=pipe, text=True) for n in range(4)
        ]
        try:
            for writer in writers:
                assert writer.stdout is not None
                assert await asyncio.to_thread(writer.stdout.readline) == "ready\n"
            ends = await asyncio.gather(*(asyncio.to_thread(writer.communicate, "go\n", 60) for writer in writers))
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()
        assert [(writer.returncode, errors) for writer, (_, errors) in zip(writers, ends, strict=True)] == [(0, "")] * 4
        batches = [int(output) for output, _ in ends]
        assert min(batches) > 0
        total = 20 * sum(batches)
        assert await store.progress(event) == Progress(total, 0, total, 0, 100.0, fan_out_finished=False)
        assert len(await store.audit.of_tenant("north", limit=10_000)) == sum(batches)
        assert await Orders(store.database).counts() == {"paid": sum(batches)}


async def test_several_processes_may_open_a_fresh_database_at_once(store_url: str) -> None:
    opening = "import asyncio, sys; from saqkit.app.store import Store; asyncio.run(Store.open(sys.argv[1]))"
    openers = [
        subprocess.Popen([sys.executable, "-c", opening, store_url], stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ends = await asyncio.gather(*(asyncio.to_thread(opener.communicate, None, 60) for opener in openers))
    assert [(opener.returncode, errors) for opener, (_, errors) in zip(openers, ends, strict=True)] == [(0, "")] * 4
    async with await Store.open(store_url) as store:
        assert await store.count_users() == 0


@pytest.mark.row("003.8")
@pytest.mark.row("004.13")
async def test_postgresql_sees_no_more_connections_than_the_pool(postgres_url: str) -> None:
    connected = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )

    def count(connection: Connection) -> int:
        found: int = connection.execute(connected).scalar_one()
        return found

    async with await Store.open(postgres_url, pool_size=3) as store, await Store.open(postgres_url) as looking:
        await store.add_numbered_users(2_000)
        event = (await store.announce(title="T", topic="t", audience=Audience(), created_at=7.5)).event_id
        users = [range(first, first + 100) for first in range(1, 2_000, 100)]
        rounds = [store.begin_batch(event, batch, channel) for channel in ("email", "sms", "push") for batch in users]
        held = [store._database.read(lambda c: c.execute(text("SELECT pg_sleep(0.5)")).all()) for _ in range(4)]
        at_work = asyncio.gather(*held, *rounds)
        seen = set()
        while not at_work.done():
            seen.add(await looking._database.read(count))
        await at_work
    assert max(seen) == 3


async def test_opening_a_current_database_waits_for_no_writer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    async with await Store.open(url) as store:

        def while_it_writes(connection: Connection) -> str:
            opening = "import asyncio, sys; from saqkit.app.store import Store; asyncio.run(Store.open(sys.argv[1]))"
            done = subprocess.run([sys.executable, "-c", opening, url], capture_output=True, text=True, timeout=60)
            return done.stderr

        started = time.monotonic()
        assert await store._database.write(while_it_writes) == ""
        assert time.monotonic() - started < 9  # BUSY_TIMEOUT_S is 10
