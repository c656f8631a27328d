"""The course platform at work: payments that complete enrolments, and its tasks by the clock, on real parts."""

from __future__ import annotations

import asyncio
import csv
import time
from pathlib import Path
from typing import Any

import pytest
from a_stub_source import stub_source
from shop_system import Shop, open_shop, until
from sqlalchemy import text

from saqkit.app.audience import Audience
from saqkit.app.courses.codes import Codes
from saqkit.app.courses.enrolling import enrol, letters
from saqkit.app.courses.enrolments import Enrolments
from saqkit.app.courses.reporting import COLUMNS
from saqkit.app.courses.source import CourseRow, Source
from saqkit.app.courses.synchronised import Synchronised
from saqkit.app.location import reports_folder
from saqkit.app.shop.checking import check_payments
from saqkit.app.shop.orders import Order
from saqkit.app.store import Recipient, UserRow
from saqkit.errors import DescriptionError, PermanentFailure, TemporaryFailure
from saqkit.queue.fault_sites import VARIABLE
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.overriding import override
from saqkit.spec.topology import Entry, Topology, load


def platform(**changes: Any) -> Topology:
    """The shipped topology with quick providers and retries; `a__b=value` sets `a.b`."""
    topology = load("course-platform")
    calm: dict[str, Any] = {}
    for name in topology.queues:
        calm |= {f"queues.{name}.{key}": value for key, value in (("lease_s", 1), ("sweep_s", 0.5), ("tick_s", 0.05))}
    for name in topology.providers:
        calm |= {f"providers.{name}.latency.mean_s": 0.005, f"providers.{name}.temporary_share": 0}
        calm[f"providers.{name}.timeout_s"] = 2
    for name in topology.job_types:
        calm[f"job_types.{name}.retry.delay_s"] = 0.1
    return override(topology, calm | {path.replace("__", "."): value for path, value in changes.items()})


async def with_people(made: Shop, *courses: CourseRow) -> Synchronised:
    """Ada and Ben, users 1 and 2, and some courses."""
    await made.store.add_users([UserRow("ada@x.example", "Ada Lovelace"), UserRow("ben@x.example", "Ben")])
    kept = Synchronised(made.store.database)
    if courses:
        await kept.begin("", "courses", 0)
        await kept.store_courses("", 0, "", courses, None, time.time())
    return kept


PYTHON = CourseRow("py", "Python", None)


async def sent(made: Shop, order: Order) -> dict[str, str]:
    """The ledger of an order's event by channel."""
    channels = ("api.payment", "none", "email", "email.welcome")
    key = (order.event_id, order.user_id)
    return {name: status for name in channels if (status := (await made._ledger(name)).get(key)) is not None}


ALL = {"api.payment": "sent", "none": "sent", "email": "sent", "email.welcome": "sent"}


async def enrolled_once(made: Shop, order: Order) -> None:
    """One charge, one completed place, one receipt, one welcome."""
    (entry,) = await made.charges.entries()
    assert (entry.charge.key, (await made.order(order.id)).state) == (order.charge_key, "paid")
    (place,) = await Enrolments(made.store.database).of_user(order.user_id)
    assert (place.course, place.order, place.state) == (1, order.id, "completed")
    assert await sent(made, order) == ALL
    for kind in ("welcome", "payment-receipt"):
        served = sum(row["users_done"] for row in await made.rows("email") if row["job_type"] == kind)
        assert served == 1, kind


def losing(event: int, user: int) -> int:
    """A seed with which the first answer is lost after the charge was made, and no second one is asked for."""
    return next(seed for seed in range(1000) if uniform(seed, Stream.TEMPORARY, event, user, 1) < 0.5)


LOST: dict[str, Any] = {
    "providers__payments__temporary_share": 1.0,
    "job_types__verify-payment__retry__max_attempts": 1,
}


@pytest.mark.row("001.16")
async def test_a_paid_order_of_a_course_completes_the_enrolment(redis_url: str, tmp_path: Path) -> None:
    async with open_shop(platform(), redis_url, tmp_path, 0) as made:
        await with_people(made, PYTHON)
        async with made.worker() as application:
            order = (await made.buys(1, course=1, title="Python for all")).order
            await made.drained()
            await enrolled_once(made, order)
            event, ada = await made.store.event(order.event_id), Recipient(1, "ada@x.example", "Ada Lovelace")
            assert event is not None
            welcome = (await letters(application, "welcome", event, [ada]))[1]
            assert welcome.subject == "Welcome to your course"
            assert "http://localhost:3000/courses/1" in welcome.text
            assert "Ada" in welcome.text
            receipt = (await letters(application, "payment-receipt", event, [ada]))[1]
            assert receipt.subject == f"Receipt of payment {order.id}"


@pytest.mark.row("001.16")
@pytest.mark.parametrize("first", ["polling", "webhook"])
async def test_a_lost_answer_is_made_up_for_by_polling_or_webhook_whichever_is_first(
    redis_url: str, tmp_path: Path, first: str
) -> None:
    async with open_shop(platform(**LOST), redis_url, tmp_path, 0) as made:
        await with_people(made, PYTHON)
        async with made.worker(losing(1, 1)) as application:
            order = (await made.buys(1, course=1)).order
            assert order.event_id == 1
            await made.drained()
            (place,) = await Enrolments(made.store.database).of_user(1)
            assert ((await made.order(order.id)).state, place.state) == ("charging", "pending")
            (entry,) = await made.charges.entries()

            async def webhook() -> None:
                await made.checkout.payment_confirmed(order.charge_key, entry.charge.id, entry.charge.money)

            async def polling() -> None:
                await check_payments(application, patience_s=-60)

            calls = [polling, webhook] if first == "polling" else [webhook, polling]
            for call in calls * 2:
                await call()
                await made.drained()
                await enrolled_once(made, order)


@pytest.mark.row("001.16")
@pytest.mark.parametrize(("site", "outcomes"), [("job.effect", ["lost", "done"]), ("finish.after", ["done"])])
async def test_a_worker_killed_between_payment_and_enrolment_enrols_once(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, outcomes: list[str]
) -> None:
    """The first process dies where its first job has done its work, before that is told or just after."""
    monkeypatch.setenv(VARIABLE, f"rate=1,only={site},actions=kill")
    async with open_shop(platform(), redis_url, tmp_path, 0) as made, made.processes(1):
        monkeypatch.delenv(VARIABLE)  # whoever is started in its place lives
        await with_people(made, PYTHON)
        order = (await made.buys(1, course=1)).order
        await made.drained()
        await enrolled_once(made, order)
        assert [row["outcome"] for row in await made.rows("payment")] == outcomes


@pytest.mark.row("001.16")
async def test_a_worker_killed_behind_the_enrolment_still_sends_the_welcome(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "rate=1,only=job.effect,actions=kill")
    async with open_shop(platform(), redis_url, tmp_path, 0) as made, made.processes(1):
        monkeypatch.delenv(VARIABLE)
        await with_people(made, PYTHON)
        given = await enrol(made.announcer, 1, 1, patience_s=5)
        await made.drained()
        assert [row["outcome"] for row in await made.rows("enrollment")] == ["lost", "done"]
        (place,) = await Enrolments(made.store.database).of_user(1)
        assert (place.state, place.order, place.event) == ("completed", None, given.event)
        assert await made._ledger("email.welcome") == {(given.event, 1): "sent"}
        again = await enrol(made.announcer, 1, 1, patience_s=5)
        assert (again.event, again.new) == (given.event, False)


async def test_nobody_is_enrolled_by_an_event_without_a_paid_order(redis_url: str, tmp_path: Path) -> None:
    async with open_shop(platform(), redis_url, tmp_path, 0) as made, made.worker():
        await with_people(made, PYTHON)
        entry = Entry(job_type="complete-enrollment")
        said = await made.announcer.announce(title="T", entry=entry, audience=Audience(users=(2,)), patience_s=5)
        await made.drained()
        assert await made._ledger("none") == {(said.event, 2): "failed"}
        assert await made._ledger("email.welcome") == {}


@pytest.mark.row("001.17", "001.18")
async def test_all_tasks_are_done_when_their_schedules_fire(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = platform()
    data = topology.to_dict()
    for schedule in data["schedules"]:
        schedule["cron"] = "* * * * * */2"
    monkeypatch.setenv("SAQKIT_REPORTS", str(tmp_path / "out"))
    with stub_source() as stub:
        stub.courses = [{"id": f"c{n}", "title": f"Course {n}", "next_lesson_at": time.time() + 3600} for n in range(5)]
        stub.places = {"ada@x.example": ["c0", "c3"]}
        stub.profiles = {"ada@x.example": {"stage": "seed"}, "ben@x.example": {"stage": "idea"}}
        stub.trouble = lambda number, path: ("", "503", "", "half", "", "breaks")[number % 6]
        monkeypatch.setenv("SAQKIT_SYNC_URL", stub.url)
        monkeypatch.setenv("SAQKIT_SYNC_TOKEN", "t0ken")
        async with open_shop(Topology.parse(data), redis_url, tmp_path, 0) as made:
            kept = await with_people(made)
            codes = Codes(made.store.database)
            await codes.issue("old@x.example", "register", "1", at=time.time() - 1000)
            await codes.issue("new@x.example", "register", "2")
            async with made.worker() as application:
                application.timetable.start()
                places = Enrolments(made.store.database)

                async def all_done() -> bool:
                    query = text("SELECT email FROM codes")
                    left = await made.store.database.read(lambda c: list(c.execute(query).scalars()))
                    reminded = {user for _, user in await made._ledger("email")}
                    return (
                        len(await kept.courses()) == 5
                        and [one.course for one in await places.of_user(1)] == [1, 4]
                        and (await kept.profile(1), await kept.profile(2)) == ({"stage": "seed"}, {"stage": "idea"})
                        and reminded == {1}
                        and left == ["new@x.example"]
                        and any(
                            _report(path).get("Course 3") == "1" for path in (tmp_path / "out").glob("courses-*.csv")
                        )
                    )

                try:
                    await until(all_done, 40)
                finally:
                    await application.timetable.stop()
                assert await codes.redeem("new@x.example", "register", "2")
                assert stub.tokens == {"Bearer t0ken"}


def _report(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    return {row[1]: row[2] for row in rows}


@pytest.mark.row("001.17")
async def test_a_synchronisation_that_is_killed_goes_on_where_it_was(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stub_source(page=2) as stub:
        stub.courses = [{"id": f"c{n}", "title": f"Course {n}"} for n in range(9)]
        stub.trouble = lambda number, path: "hangs" if number == 3 else "503" if number == 5 else ""
        monkeypatch.setenv("SAQKIT_SYNC_URL", stub.url)
        async with open_shop(platform(), redis_url, tmp_path, 0) as made, made.processes(1) as launcher:
            kept = await with_people(made)
            await announce(made, "sync-courses")
            await asyncio.to_thread(stub.hangs.wait, 30)
            launcher.kill(0)
            await made.drained()
            assert sorted(await kept.courses()) == [f"c{n}" for n in range(9)]
            cursors = [path.partition("after=")[2] for path in stub.asked]
            assert cursors == ["", "2", "4", "4", "6", "6", "8"], "no page that was stored is asked for again"
            assert [row["outcome"] for row in await made.rows("sync")] == ["lost", "retry", "done"]


@pytest.mark.row("001.17")
async def test_a_source_that_is_down_is_asked_by_the_next_job_that_the_queue_tries(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stub_source() as stub:
        stub.profiles = {"ada@x.example": {"stage": "seed"}}
        stub.trouble = lambda number, path: "503" if number <= 2 else "404" if "ben" in path else ""
        monkeypatch.setenv("SAQKIT_SYNC_URL", stub.url)
        async with open_shop(platform(), redis_url, tmp_path, 0) as made, made.worker():
            kept = await with_people(made)
            event = await announce(made, "sync-profiles")
            await made.drained()
            assert await kept.profile(1) == {"stage": "seed"}
            assert await made._ledger("api.incubator") == {(event, 1): "sent", (event, 2): "failed"}
            assert len(stub.asked) == 4, "who is served is not asked for again"


async def announce(made: Shop, job_type: str) -> int:
    nobody = made.topology.job_types[job_type].fan_out is None
    audience = Audience(nobody=True) if nobody else Audience(roles=("student",))
    said = await made.announcer.announce(
        title="T", entry=Entry(job_type=job_type), audience=audience, patience_s=5
    )  # fmt: skip
    return said.event


@pytest.mark.row("001.17")
@pytest.mark.parametrize(
    ("trouble", "kind", "words"),
    [
        ("503", TemporaryFailure, "/api/profiles: 503"),
        ("429", TemporaryFailure, "429"),
        ("404", PermanentFailure, "404"),
        ("302", PermanentFailure, "302"),
        ("half", TemporaryFailure, "IncompleteRead|bytes"),
        ("breaks", TemporaryFailure, "Remote end closed"),
        ("hangs", TemporaryFailure, "no answer within|timed out"),
        ("nonsense", TemporaryFailure, "the answer is no JSON"),
    ],
)
async def test_every_failure_of_a_source_is_one_line_and_comes_in_time(
    trouble: str, kind: type[Exception], words: str
) -> None:
    with stub_source() as stub:
        stub.trouble = lambda number, path: trouble
        source = Source(stub.url)
        began = time.monotonic()
        with pytest.raises(kind, match=words) as caught:
            await source.profile("ada@x.example", 0.5)
        assert time.monotonic() - began < 5
        assert "\n" not in str(caught.value)
        assert "ada@" not in str(caught.value)
        assert len(stub.asked) == 1, "redirects are not followed, and the queue tries again, nobody else"
        stub.release.set()
        await source.close()


@pytest.mark.row("001.17")
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([], "the answer is no object"),
        ({}, "courses is no list"),
        ({"courses": [3]}, "a course is no object"),
        ({"courses": [{"id": "a", "title": "two\nlines"}]}, "title is no text of one line"),
        ({"courses": [{"id": 5, "title": "T"}]}, "id is no text"),
        ({"courses": [{"id": "a", "title": "T", "next_lesson_at": "soon"}]}, "next_lesson_at is no time"),
        ({"courses": [], "next": "here"}, "next leads nowhere"),
    ],
)
async def test_an_answer_that_makes_no_sense_is_refused(answer: Any, words: str) -> None:
    with stub_source() as stub:
        stub.answer = lambda address: answer  # type: ignore[method-assign]
        source = Source(stub.url)
        with pytest.raises(TemporaryFailure, match=words):
            await source.courses("here", 5)
        await source.close()


@pytest.mark.parametrize("address", ["learn.test", "ftp://learn.test", "https:///x", "http://[", "http://u:p@h/",
                                     "http://h:x/", "http://h/?a=b"])  # fmt: skip
def test_an_address_that_is_none_is_refused_without_being_shown(address: str) -> None:
    with pytest.raises(DescriptionError, match="SAQKIT_SYNC_URL") as caught:
        Source.from_environment({"SAQKIT_SYNC_URL": address})
    assert address not in str(caught.value)
    assert Source.from_environment({"SAQKIT_SYNC_URL": ""}) is None


async def test_reports_are_beside_the_database_unless_the_environment_says_otherwise(
    redis_url: str, tmp_path: Path
) -> None:
    async with open_shop(platform(), redis_url, tmp_path, 0) as made, made.worker():
        await with_people(made, CourseRow("f", "=1+1", None))
        event = await announce(made, "report")
        await made.drained()
        (path,) = reports_folder(made.store.database, {}).iterdir()
        assert path == tmp_path / "data.db.reports" / path.name
        assert path.name.endswith(f"-{event}.csv")
        assert _report(path) == {"'=1+1": "0"}
    assert reports_folder(made.store.database, {"SAQKIT_REPORTS": "/r"}) == Path("/r")
