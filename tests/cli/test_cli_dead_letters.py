"""`saqkit dlq` on a real broker: looking, filtering, replaying, removing, exporting, and what is refused."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import redis as blocking
from command_line import answer, saqkit
from saq.job import Job, Status

from saqkit.queue.queue import Queue
from saqkit.queue.tables import DEAD_LETTERS, read_csv

SHOP = """
name = "shop"

[[entry]]
job_type = "pay"

[queues.orders]

[queues.mail]

[job_types.pay]
queue = "orders"

[job_types.confirm]
queue = "mail"
per_user = { database = "none" }
"""
STACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nsmtplib.SMTPServerDisconnected: lost {}'


async def _fill(url: str) -> None:
    """Queue `mail` has two dead letters of pupils' mails an hour old; `orders` one that is new, and one of key `m1`."""
    mail, orders = Queue.from_url(url, name="mail"), Queue.from_url(url, name="orders")
    for queue, key, function, tenant, error in (
        (mail, "m1", "confirm", "north", STACK.format(17)),
        (mail, "m2", "confirm", "south", STACK.format(18)),
        (orders, "o1", "pay", "", "ValueError: card 4711 is expired"),
    ):
        job = Job(function, key=key, kwargs={"order": 7, "note": "é"}, meta={"tenant": tenant})
        await queue.enqueue_many([job])
        taken = await queue.dequeue(timeout=5)
        assert taken is not None
        await queue.finish(taken, Status.FAILED, error=error)
    for n, key in enumerate(("m1", "m2")):
        await mail.redis.zadd(mail.namespace("dead"), {key: time.time() - 3600 + n})
    await mail.disconnect()
    await orders.disconnect()


@pytest.fixture
def filled(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("REDIS_URL", redis_url)
    (tmp_path / "shop.toml").write_text(SHOP)
    monkeypatch.setenv("SAQKIT_TOPOLOGY", str(tmp_path / "shop.toml"))
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'shop.db'}")
    monkeypatch.chdir(tmp_path)
    asyncio.run(_fill(redis_url))
    return redis_url


def listed(*arguments: str) -> list[str]:
    return [letter["key"] for letter in answer("dlq", "list", *arguments)]


@pytest.mark.usefixtures("filled")
def test_list_has_filters() -> None:
    ago = (datetime.now(UTC) - timedelta(minutes=30)).isoformat()
    assert listed() == ["m1", "m2", "o1"]
    assert listed("--newest", "--limit", "2") == ["o1", "m2"]
    assert listed("--offset", "1") == ["m2", "o1"]
    assert listed("--queue", "mail") == ["m1", "m2"]
    assert listed("--queue", "mail", "--queue", "orders", "--limit", "3") == ["m1", "m2", "o1"]
    assert listed("--type", "pay") == ["o1"]
    assert listed("--tenant", "south") == ["m2"]
    assert listed("--error", "SMTPServerDisconnected") == ["m1", "m2"]
    assert listed("--text", "card 47") == ["o1"]
    assert listed("--since", "30m") == listed("--since", ago) == ["o1"]
    assert listed("--until", "0.5h") == listed("--until", ago) == ["m1", "m2"]
    assert listed("--since", "2d", "--until", "1d") == []
    assert listed("--attempts", "2") == []
    shown = saqkit("dlq", "list").stdout
    assert [line.split()[0] for line in shown.splitlines()[2:]] == ["m1", "m2", "o1"]
    assert "SMTPServerDisconnected: lost 17" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert saqkit("dlq", "list", "--tenant", "nobody").stdout == "none\n"


@pytest.mark.usefixtures("filled")
def test_groups_count_by_error_or_what_is_asked_for() -> None:
    first, second = answer("dlq", "groups")
    assert first["by"] == {"error_class": "smtplib.SMTPServerDisconnected", "message": "lost #"}
    assert (first["count"], first["example"]) == (2, "m2")
    assert first["first_died_at"] < first["last_died_at"] < second["last_died_at"]
    assert second["by"] == {"error_class": "ValueError", "message": "card # is expired"}
    by_tenant = answer("dlq", "groups", "--by", "queue", "--by", "tenant")
    assert sorted(tuple(one["by"].values()) for one in by_tenant) == [
        ("mail", "north"),
        ("mail", "south"),
        ("orders", ""),
    ]
    shown = saqkit("dlq", "groups", "--queue", "mail").stdout.splitlines()
    assert shown[2].split()[0] == "2"
    assert max(map(len, shown)) <= 100


@pytest.mark.usefixtures("filled")
def test_show_tells_everything_of_one() -> None:
    told = answer("dlq", "show", "m1")
    assert told["kwargs"] == {"order": 7, "note": "é"}
    assert told["meta"] == {"tenant": "north"}
    assert told["error"] == STACK.format(17)
    assert (told["queue"], told["function"], told["attempts"], told["crashes"]) == ("mail", "confirm", 1, 0)
    times = [datetime.fromisoformat(told[name]) for name in ("queued_at", "started_at", "died_at")]
    assert all(at.tzinfo == UTC for at in times)
    assert told["worker"]
    assert told["died_at"].endswith("Z")
    shown = saqkit("dlq", "show", "m1").stdout
    assert shown.endswith(f"error\n{STACK.format(17)}\n")
    assert 'kwargs       {"order": 7, "note": "é"}' in shown


@pytest.mark.usefixtures("filled")
def test_replay_by_key_by_filter_and_all_once() -> None:
    assert answer("dlq", "replay", "--error", "ValueError", "--dry-run") == {
        "found": 1,
        "replayed": 0,
        "users_reopened": 0,
    }
    assert answer("dlq", "replay", "m1") == {"found": 1, "replayed": 1, "users_reopened": 0}
    assert listed() == ["m2", "o1"]
    assert answer("dlq", "replay", "--error", "ValueError")["replayed"] == 1
    assert "1 queued again, 0 users pending again" in saqkit("dlq", "replay", "--all").stdout
    assert answer("dlq", "replay", "--all") == {"found": 0, "replayed": 0, "users_reopened": 0}
    counts = answer("stats")["queues"]
    assert (counts["mail"]["waiting"], counts["orders"]["waiting"]) == (2, 1)


def job_of(url: str, queue: str, key: str) -> dict[str, Any]:
    with blocking.Redis.from_url(url) as client:
        body: Any = client.hget(f"saq:job:{{{queue}}}:{key}", "body")
        stored: dict[str, Any] = json.loads(body)
        return stored


def test_replay_with_other_arguments_and_into_another_queue(filled: str) -> None:
    assert answer("dlq", "replay", "m1", "--kwargs", '{"order": 8, "slow": true}')["replayed"] == 1
    assert job_of(filled, "mail", "m1")["kwargs"] == {"order": 8, "slow": True, "note": "é"}
    assert answer("dlq", "replay", "--tenant", "south", "--to", "orders") == {
        "found": 1,
        "replayed": 1,
        "users_reopened": 0,
    }
    assert job_of(filled, "orders", "m2")["kwargs"] == {"order": 7, "note": "é"}
    assert answer("stats")["queues"]["orders"]["waiting"] == 1
    assert answer("dlq", "replay", "o1", "--to", "mail")["replayed"] == 1
    assert listed() == []


def test_a_replay_that_is_refused_elsewhere_is_told(filled: str) -> None:
    async def occupy() -> None:
        queue = Queue.from_url(filled, name="orders")
        await queue.enqueue("pay", key="m1")
        await queue.disconnect()

    asyncio.run(occupy())
    said = saqkit("dlq", "replay", "--queue", "mail", "--all", "--to", "orders")
    assert "1 queued again" in said.stdout
    assert "1 not: somebody else was first, a job of that key lives in the other queue" in said.stdout
    assert listed("--queue", "mail") == ["m1"]


@pytest.mark.usefixtures("filled")
def test_purge_needs_a_yes() -> None:
    those = {("m1",): "1 dead letter", ("--all", "--json"): "3 dead letters", ("--type", "pay"): "1 dead letter"}
    for arguments, number in those.items():
        refused = saqkit("dlq", "purge", *arguments)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
        assert f"{number} would be removed for good" in refused.stderr
        assert "add --yes to do it, or --dry-run" in refused.stderr
    assert "give either --yes or --dry-run" in saqkit("dlq", "purge", "--all", "--yes", "--dry-run").stderr
    assert listed() == ["m1", "m2", "o1"]
    assert answer("dlq", "purge", "--type", "confirm", "--dry-run") == {"found": 2, "purged": 0}
    assert saqkit("dlq", "purge", "--all", "--dry-run").stdout == "3 would be removed\n"
    assert listed() == ["m1", "m2", "o1"]
    assert answer("dlq", "purge", "m1", "--yes") == {"found": 1, "purged": 1}
    assert answer("dlq", "purge", "--until", "30m", "--yes") == {"found": 1, "purged": 1}
    assert listed() == ["o1"]


@pytest.mark.usefixtures("filled")
def test_export_writes_what_was_chosen(tmp_path: Path) -> None:
    assert answer("dlq", "export", "all.csv") == {"written": 3, "file": "all.csv"}
    assert saqkit("dlq", "export", "mail.parquet", "--queue", "mail").stdout == "2 written to mail.parquet\n"
    assert answer("dlq", "export", "one.json", "--limit", "1")["written"] == 1
    table = pd.read_csv(tmp_path / "all.csv", parse_dates=["died_at"])
    assert table["key"].tolist() == ["m1", "m2", "o1"]
    assert table["error"][0] == STACK.format(17)
    assert json.loads(table["kwargs"][0]) == {"order": 7, "note": "é"}
    answer("dlq", "export", "all.parquet")
    pd.testing.assert_frame_equal(read_csv("all.csv", DEAD_LETTERS), pd.read_parquet("all.parquet"))
    frame = pd.read_parquet(tmp_path / "mail.parquet")
    assert str(frame["died_at"].dtype) == "datetime64[us, UTC]"
    assert frame["tenant"].tolist() == ["north", "south"]
    assert json.loads((tmp_path / "one.json").read_text()) == answer("dlq", "list", "--limit", "1")


def test_what_is_gone_is_told(filled: str) -> None:
    with blocking.Redis.from_url(filled) as client:
        client.hset("saq:{mail}:counts", mapping={"dead_dropped": 1200, "dead_expired": 3})
    assert "gone before: 1,200 dropped by the cap, 3 past their retention" in saqkit("dlq", "list").stdout
    mail = answer("stats")["queues"]["mail"]
    assert (mail["dead_dropped"], mail["dead_expired"]) == (1200, 3)


def test_a_key_of_two_queues_asks_for_the_queue(filled: str) -> None:
    with blocking.Redis.from_url(filled) as client:
        client.copy("saq:job:{mail}:m1", "saq:job:{orders}:m1")
        client.zadd("saq:{orders}:dead", {"m1": time.time() - 5})
    refused = saqkit("dlq", "show", "m1")
    assert refused.returncode == 2
    assert "(choose one with --queue)" in refused.stderr
    assert answer("dlq", "show", "m1", "--queue", "mail")["queue"] == "mail"


WRONG = {
    "queue": (("list", "--queue", "mial"), '--queue: there is no queue "mial" (did you mean "mail"?)'),
    "time": (("list", "--since", "yesterday"), '"yesterday" is no time (write 2h'),
    "time ahead": (("groups", "--until", "2026-13-01"), '"2026-13-01" is no time'),
    "limit": (("list", "--limit", "0"), "--limit: 0 is too small"),
    "attempts": (("list", "--attempts", "-1"), "--attempts: -1 is too small"),
    "by": (("groups", "--by", "tennant"), 'there is no "tennant" (did you mean "tenant"?)'),
    "show what": (("show",), "KEY is missing"),
    "show": (("show", "m3"), 'there is no dead letter "m3" (did you mean "m'),
    "replay nothing": (("replay",), "give either the KEYs"),
    "replay both": (("replay", "m1", "--all"), "give either the KEYs"),
    "replay key and filter": (("replay", "m1", "--type", "pay"), "give either the KEYs"),
    "replay of a queue": (("replay", "--queue", "mail"), "or --all"),
    "replay key": (("replay", "m1", "o2"), 'there is no dead letter "o2"'),
    "replay elsewhere": (
        ("replay", "--all", "--to", "order"),
        '--to: there is no queue "order" (did you mean "orders"?)',
    ),
    "no JSON": (("replay", "--all", "--kwargs", "{limit: 10}"), "--kwargs: is not JSON: Expecting property name"),
    "no object": (("replay", "--all", "--kwargs", "[1]"), "--kwargs: [1] is not an object of arguments"),
    "purge nothing": (("purge", "--yes"), "give either the KEYs"),
    "purge key": (("purge", "--yes", "m1", "x"), 'there is no dead letter "x"'),
    "export kind": (("export", "letters.xlsx"), "told by its ending (use .csv, .parquet, .json)"),
    "export folder": (("export", "nowhere/letters.csv"), "nowhere does not exist"),
}


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line_and_status_2_and_changes_nothing(case: str) -> None:
    arguments, reason = WRONG[case]
    done = saqkit("dlq", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr
    assert listed() == ["m1", "m2", "o1"]
