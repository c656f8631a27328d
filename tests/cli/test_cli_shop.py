"""`saqkit checkout` and `saqkit orders` on real parts: an order that a worker pays, and whatever cannot be ordered."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import answer, saqkit, says, start

from saqkit import Queue
from saqkit.app.shop.checkout import Checkout
from saqkit.app.shop.money import Money
from saqkit.app.shop.orders import Order, Orders
from saqkit.cli import shopping
from saqkit.errors import StoreError
from saqkit.spec.topology import load

SHOP = """\
name = "shop"
entry = [{ job_type = "payment" }]
[queues.payments]
[job_types.payment]
queue = "payments"
work = "payment"
per_user = { database = "ledger", provider = "payments" }
[providers.payments]
channel = "sms"
latency = { kind = "constant", mean_s = 0.01 }
"""


@pytest.fixture
def _shop(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topology, people = tmp_path / "shop.toml", tmp_path / "people.csv"
    topology.write_text(SHOP)
    people.write_text("email,name,role,tenant\na@shop.example,A,student,north\n")
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'shop.db'}")
    monkeypatch.setenv("SAQKIT_TOPOLOGY", str(topology))
    answer("users", "import", str(people))


ORDER = ("checkout", "--user", "1", "--amount", "12.50", "--currency", "EUR")


@pytest.mark.usefixtures("_shop")
def test_an_order_is_checked_out_paid_and_shown() -> None:
    assert answer("orders") == {}
    first = answer(*ORDER, "--key", "cart")
    assert (first["new"], first["enqueued"], first["order"]["state"]) == (True, True, "new")
    process = start("worker")
    try:
        says(process, "ready:")
        again = answer(*ORDER, "--key", "cart", "--wait", "30")
    finally:
        process.terminate()
        process.communicate()
    assert (again["new"], again["order"]["id"], again["order"]["state"]) == (False, 1, "paid")
    assert saqkit("orders", "1").stdout == "order 1 of user 1, 12.50 EUR: paid\n"
    assert answer("orders") == {"paid": 1}
    assert json.loads(saqkit("orders", "1", "--json").stdout)["charge_id"] == again["order"]["charge_id"]


@pytest.mark.usefixtures("_shop")
def test_the_environment_says_how_often_a_payment_is_tried(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def attempts() -> list[int]:
        queue = Queue.from_url(redis_url, name="payments")
        try:
            return sorted([job.retries async for job in queue.iter_jobs()])
        finally:
            await queue.disconnect()

    answer(*ORDER)
    monkeypatch.setenv("JOB_MAX_RETRIES", "7")
    answer(*ORDER)
    assert asyncio.run(attempts()) == [3, 7]
    monkeypatch.setenv("JOB_MAX_RETRIES", "0")
    done = saqkit(*ORDER)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("saqkit: JOB_MAX_RETRIES: ")


@pytest.mark.usefixtures("_shop")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((*ORDER[:4], "-1", *ORDER[5:]), "an amount of -100 cannot be charged"),
        ((*ORDER[:4], "12,50", *ORDER[5:]), '"12,50" is no amount of EUR (such as 12.50)'),
        ((*ORDER[:-1], "EURO"), 'there is no currency "EURO" (did you mean "EUR"?)'),
        (("checkout", "--user", "2", *ORDER[3:]), "there is no active user 2"),
        ((*ORDER, "--tenant", "south"), "no active user 1 of tenant south"),
        ((*ORDER, "--topology", "school-events"), 'has work = "payment"'),
        (("orders", "7"), "there is no order 7"),
        (("orders", "0"), "0 is too small"),
    ],
)
def test_what_cannot_be_ordered_is_refused_in_one_line(arguments: tuple[str, ...], why: str) -> None:
    done = saqkit(*arguments)
    assert done.returncode == 2
    assert why in done.stderr
    assert (done.stderr.count("\n"), done.stdout) == (1, "")
    assert answer("orders") == {}


@pytest.mark.usefixtures("_shop")
def test_it_says_whether_the_payment_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    said = saqkit(*ORDER, "--key", "cart").stdout
    assert re.fullmatch(r"order 1 of 12\.50 EUR: new; elapsed_ms [\d.]+; its payment is queued\n", said)
    again = saqkit(*ORDER, "--key", "cart").stdout
    assert again.endswith(" (checked out before with this key)\n")
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    away = saqkit(*ORDER)
    assert away.returncode == 0
    assert away.stdout.endswith("; its payment is queued once the broker is back\n")


@pytest.mark.usefixtures("_shop")
def test_an_order_is_told_of_before_the_wait_and_who_was_interrupted_can_repeat_it() -> None:
    process = start(*ORDER, "--wait", "60", "--json")
    saved = says(process, "waiting for its payment")
    assert "no worker serves payments now: start `saqkit worker shop`" in says(process, "no worker")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == 130
    found = re.fullmatch(r"order 1 is saved \(--key (\w+)\); waiting for its payment\n", saved)
    assert found is not None
    again = answer(*ORDER, "--key", found[1])
    assert (again["new"], again["order"]["id"]) == (False, 1)
    assert answer("orders") == {"new": 1}


@pytest.mark.usefixtures("_shop")
def test_who_fails_after_the_commit_says_with_what_key_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Checkout.check_out

    async def lost(self: Checkout, **given: object) -> None:
        await whole(self, **given)  # type: ignore[arg-type]
        raise StoreError("the database has gone")

    with monkeypatch.context() as patch:
        patch.setattr(Checkout, "check_out", lost)
        done = saqkit(*ORDER)
    assert (done.returncode, done.stdout) == (2, "")
    found = re.search(r"with --key (\w+) it is charged once\n", done.stderr)
    assert found is not None
    assert answer(*ORDER, "--key", found[1])["new"] is False
    assert answer("orders") == {"new": 1}


@pytest.mark.usefixtures("_shop")
async def test_a_cancellation_that_a_library_swallows_ends_the_wait(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Orders.order

    async def swallows(self: Orders, identity: int) -> Order | None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return await whole(self, identity)

    monkeypatch.setattr(Orders, "order", swallows)
    waiting = shopping._check_out(load(tmp_path / "shop.toml"), 1, Money.of("1", "EUR"), "", None, 30.0, redis_url)
    task = asyncio.create_task(waiting)
    done, _ = await asyncio.wait({task}, timeout=15)
    assert done
    assert task.cancelled()
