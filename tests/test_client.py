"""What an application uses that is no worker: opened in order, closed in order, and whole without a broker."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import pytest

import saqkit
from saqkit.app.audience import Audience
from saqkit.app.shop.money import Money
from saqkit.errors import StoreError, UsageError


def sockets() -> int:
    return len([one for one in psutil.Process().net_connections("unix") if one.raddr])


def files_of(folder: Path) -> set[str]:
    return {one.path for one in psutil.Process().open_files() if one.path.startswith(str(folder))}


@pytest.mark.row("001.6")
async def test_it_opens_the_database_before_the_queues_and_closes_it_after_them(
    redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = sockets()
    with caplog.at_level(logging.INFO, "saqkit"):
        client = saqkit.Client("school-events", redis=redis_url, database=f"sqlite:///{tmp_path}/data.db")
        await client.start()
        await client.store.add_numbered_users(3)
        event = await client.announcer.announce(title="Sports day", patience_s=5)
        assert (event.new, event.enqueued) == (True, True)
        assert await client.queues["notifications"].count("queued") == 1
        await client.stop()
        await client.stop()  # a second time does nothing
    said = [record.getMessage().split(":")[0] for record in caplog.records if record.name == "saqkit"]
    assert said == ["database opened", "queues notifications", "queues closed", "database closed"]
    assert sockets() == before
    assert files_of(tmp_path) == set()
    await client.start()  # it may be started again
    assert await client.store.count_users(Audience()) == 3
    await client.stop()


async def test_what_is_announced_while_the_broker_is_away_is_saved(tmp_path: Path) -> None:
    nobody = f"unix://{tmp_path}/nobody.sock"
    async with saqkit.Client("school-events", redis=nobody, database=f"sqlite:///{tmp_path}/data.db") as client:
        event = await client.announcer.announce(title="Sports day")
        assert (event.new, event.enqueued) == (True, False)
        assert await client.store.undelivered() == [event.event]


async def test_its_calls_are_those_of_the_reference_application(redis_url: str, tmp_path: Path) -> None:
    where = {"redis": redis_url, "database": f"sqlite:///{tmp_path}/data.db"}
    async with saqkit.Client("shop", **where) as client:
        await client.store.add_numbered_users(1)
        done = await client.checkout.check_out(user=1, money=Money.of("12.50", "EUR"), key="cart 1")
        assert (done.new, done.order.state) == (True, "new")
    async with saqkit.Client("voting", **where) as client:
        assert await client.emails.send_referral_join("ann@vote.example", friend="Zoë")
        with pytest.raises(UsageError, match="no topic"):
            await client.publisher.publish("vote.creatd", {}, user=1)
    async with saqkit.Client("school-erp", **where) as client:
        with pytest.raises(UsageError, match="nowhere"):
            await client.school.mark("nowhere", "main", "2026-03-02", {1: "present"}, by="ms day")


async def test_used_wrongly_it_says_how_it_is_used(redis_url: str, tmp_path: Path) -> None:
    client = saqkit.Client("school-events", redis=redis_url, database=f"sqlite:///{tmp_path}/data.db")
    with pytest.raises(UsageError, match="not started"):
        await client.announcer.announce(title="Sports day")
    with pytest.raises(UsageError, match="not started"):
        _ = client.queues
    async with client:
        with pytest.raises(UsageError, match="started already"):
            await client.start()
    with pytest.raises(UsageError, match="not started"):
        _ = client.store


async def test_a_start_that_fails_leaves_nothing_open(redis_url: str, tmp_path: Path) -> None:
    before = sockets()
    (tmp_path / "data.db").write_text("this is no database, it is a letter" * 100)
    client = saqkit.Client("school-events", redis=redis_url, database=f"sqlite:///{tmp_path}/data.db")
    with pytest.raises(StoreError):
        await client.start()
    with pytest.raises(UsageError, match="not started"):
        _ = client.store
    assert sockets() == before
    assert files_of(tmp_path) == set()
