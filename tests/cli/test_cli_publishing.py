"""`saqkit publish`: an event on a topic reaches its subscribers in real workers, and its emails a real mail server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from command_line import COMMAND, answer, saqkit, wait_until

from saqkit import load
from saqkit.app.subscribers.subscribing import subscribers_of
from saqkit.bus.topics import GROUPS
from saqkit.testing import SmtpSink

PEOPLE = """email,name,role,tenant
voter@v.example,Vera Vote,student,
s1@v.example,Sue,supporter,
s2@v.example,Sam,supporter,
s3@v.example,Sim,supporter,
f1@v.example,Flo,subscriber,
f2@v.example,Fay,subscriber,
pupil@n.example,Pia,student,north
p1@n.example,Pa,parent,north
p2@n.example,Ma,parent,north
t@n.example,Tea,teacher,north
p@s.example,Po,parent,south
"""
VOTER, PUPIL = 1, 7
MODEL = {"model": 7, "model_name": "Nova"}
SUPPORTERS = {"s1@v.example", "s2@v.example", "s3@v.example"}
VOTING: dict[str, tuple[str, dict[str, Any], set[str], str]] = {
    "vote.created": ("voter", {**MODEL, "votes": 3}, {"voter@v.example"}, "Nova"),
    "model.progress_milestone": ("", {**MODEL, "percent": 50}, {"f1@v.example", "f2@v.example"}, "Nova is at 50 %"),
    "model.rank_changed": ("", {**MODEL, "rank": 1, "previous_rank": 4}, SUPPORTERS, "Nova is number 1 now"),
    "reward.earned": ("voter", {"reward": 4, "reward_name": "Gold badge"}, {"voter@v.example"}, "Gold badge"),
    "user.registered": ("voter", {"friend": "Zoe"}, {"voter@v.example"}, "Zoe"),
    "referral.milestone": ("voter", {"referrals": 10}, {"voter@v.example"}, "10"),
}
"""Of each topic: who is named, what is said, whom it is told to, and what the subject has."""
PARENTS, STAFF = {"p1@n.example", "p2@n.example"}, {"t@n.example"}
SCHOOL: dict[str, tuple[str, dict[str, Any], set[str], str]] = {
    "student:enrolled": ("pupil", {"student": "Pia", "class_name": "7b"}, {"pupil@n.example"}, "Pia is enrolled in 7b"),
    "student:withdrawn": ("pupil", {"student": "Pia"}, {"pupil@n.example"}, "Pia has left the school"),
    "class:created": ("", {"class_name": "7b"}, STAFF, "the class 7b was made"),
    "subject:assigned": ("", {"subject": "Art", "class_name": "7b", "teacher": "Tea"}, STAFF, "Art in 7b is taught by"),
    "attendance:marked": ("pupil", {"student": "Pia", "status": "late", "day": "2040-01-02"}, {"pupil@n.example"},
                          "Pia was marked late on 2040-01-02"),
    "attendance:batch_marked": ("", {}, set(), ""),
    "attendance:corrected": ("pupil", {"student": "Pia", "status": "present", "day": "2040-01-02"}, {"pupil@n.example"},
                             "the mark of Pia on 2040-01-02 is present now"),
    "attendance:report_generated": ("", {"report": 12}, STAFF, "the attendance report 12 is ready"),
    "exam:created": ("", {"exam": "Maths", "day": "2040-02-03"}, PARENTS, "the exam Maths is on 2040-02-03"),
    "exam:results_published": ("", {"exam": "Maths"}, PARENTS, "the results of the exam Maths"),
    "grade:updated": ("pupil", {"student": "Pia", "grade": "A", "subject": "Art"}, {"pupil@n.example"},
                      "Pia has grade A in Art now"),
    "tenant:created": ("", {"school": "North School"}, STAFF, "North School has joined"),
    "system:error_occurred": ("", {"job_type": "x", "error": "Boom: no"}, STAFF, "x has failed for good: Boom: no"),
    "notification:sent": ("", {}, set(), ""),
}  # fmt: skip
IDS = {"voter": VOTER, "pupil": PUPIL}
MINE = """
from saqkit.spec.backoff import Retry

def subscribe(bus):
    @bus.subscribe("exam:created", retry=Retry(max_attempts=1))
    async def breaks(ctx, event):
        raise RuntimeError("the timetable is away")
"""


@pytest.fixture(autouse=True)
def people(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker and database are this test's own; the people are in it."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_DATABASE_URL", f"sqlite:///{tmp_path / 'data.db'}")
    monkeypatch.setenv("FRONTEND_URL", "https://vote.example")
    monkeypatch.setenv("SAQKIT_LOG", "json")
    (tmp_path / "users.csv").write_text(PEOPLE)
    assert answer("users", "import", str(tmp_path / "users.csv"))["added"] == 11


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmtpSink]:
    with SmtpSink() as found:
        monkeypatch.setenv("SAQKIT_SMTP_URL", found.url)
        yield found


Working = Callable[..., Any]


@pytest.fixture
def working(tmp_path: Path) -> Working:
    @contextmanager
    def working(*command: str, ready: str = "ready: ") -> Iterator[Path]:
        """A worker that is ready; told to stop, it stops well. Gives the file of its log."""
        log = tmp_path / f"{len(list(tmp_path.glob('*.log')))}.log"
        with log.open("wb") as err:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, cwd=tmp_path)

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            return ready in log.read_text()

        try:
            wait_until(is_ready)
            yield log
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.terminate()
            process.wait(60)

    return working


def worker(topology: str, *options: str) -> tuple[str, ...]:
    return (*COMMAND, "worker", topology, "-v", "--statistics", "0", *options)


def publish(topology: str, topic: str, user: str, data: dict[str, Any], *more: str) -> Any:
    named = ("--user", str(IDS[user])) if user else ()
    return answer("publish", topic, "--topology", topology, "--data", json.dumps(data), *named, *more)


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def arrived(sink: SmtpSink, number: int) -> None:
    wait_until(lambda: len(sink.messages) >= number)


def ended(topology: str) -> list[dict[str, Any]]:
    """The statistics, once nothing is left to be delivered."""
    found: list[dict[str, Any]] = []

    def nothing_is_left() -> bool:
        found[:] = answer("events", "--topology", topology)
        return not any(row["waiting"] + row["active"] + row["delayed"] for row in found)

    wait_until(nothing_is_left)
    return found


@pytest.mark.row("002.10", "002.11", "002.13")
def test_each_topic_of_voting_becomes_its_emails(sink: SmtpSink, working: Working) -> None:
    with working(*worker("voting", "--set", "queues.email.rate_limit=none")) as log:
        said = {topic: publish("voting", topic, user, data) for topic, (user, data, _, _) in VOTING.items()}
        assert all(one["new"] and one["enqueued"] for one in said.values())
        assert said["model.rank_changed"]["subscribers"] == ["on_rank_changed"]
        arrived(sink, 9)
        rows = ended("voting")
        again = publish("voting", "vote.created", "voter", {**MODEL, "votes": 3}, "--id", said["vote.created"]["id"])
        assert (again["new"], again["enqueued"]) == (False, False)
    assert len(sink.messages) == 9
    for topic, (_, _, to, subject) in VOTING.items():
        mine = [one for one in sink.messages if one.message["X-Correlation-ID"] == said[topic]["correlation_id"]]
        assert {one.recipients[0] for one in mine} == to
        assert len(mine) == len(to)
        assert all(subject in one.message["Subject"] for one in mine), topic
    delivered = {(row["topic"], row["subscriber"]): row["completed"] for row in rows if row["completed"]}
    types = load("voting").topics
    assert delivered == {
        (topic, name): 1 for topic in VOTING for name in ("", types[topic].starts[0].replace("-", "_"))
    }
    ranks = said["model.rank_changed"]
    told = [line for line in lines(log) if line.get("correlation_id") == ranks["correlation_id"]]
    assert {line["event_id"] for line in told} == {ranks["id"]}
    assert [line["message"] for line in told if line["message"].startswith("event ")] == [
        "event model.rank_changed goes to on_rank_changed",
        "event model.rank_changed: email rank-update queued for 3 users",
    ]
    ids = {one.message_id for one in sink.messages if one.message["X-Correlation-ID"] == ranks["correlation_id"]}
    assert {line["message_id"] for line in told if line["message"].endswith("email rank-update sent")} == ids


@pytest.mark.row("004.7", "004.16")
def test_each_topic_of_school_erp_tells_whom_it_concerns_and_starts_the_schools_jobs(
    sink: SmtpSink, working: Working
) -> None:
    with working(*worker("school-erp")) as log:
        said = {topic: publish("school-erp", topic, user, data, "--tenant", "north", "--correlation-id", f"c-{n}")
                for n, (topic, (user, data, _, _)) in enumerate(SCHOOL.items())}  # fmt: skip
        arrived(sink, 14)
        rows = ended("school-erp")
        wait_until(_drained)
    for topic, (_, _, to, news) in SCHOOL.items():
        mine = [one for one in sink.messages if one.message["X-Correlation-ID"] == said[topic]["correlation_id"]]
        assert Counter(one.recipients[0] for one in mine) == Counter(to), topic
        assert all(f"News from school: {news}" in one.message["Subject"] for one in mine)
    types = load("school-erp").topics
    subscribers = {(topic, job.replace("-", "_")) for topic, one in types.items() for job in one.starts}
    assert {(row["topic"], row["subscriber"]) for row in rows if row["completed"] and row["subscriber"]} == subscribers
    assert sum(row["failed"] for row in rows) == 0
    # update-records and refresh-statistics were run, in the queues that the topology gives them
    done = [line for line in lines(log) if line["message"].startswith("processed ")]
    queues = Counter((line["queue"], line["correlation_id"]) for line in done)
    assert queues == Counter(
        ({"update-records": "academic", "refresh-statistics": "reports"}[job], said[topic]["correlation_id"])
        for topic, one in types.items()
        for job in one.starts
        if job in ("update-records", "refresh-statistics")
    )
    assert {line["tenant"] for line in done} == {"north"}


def _drained() -> bool:
    return not any(
        row["waiting"] + row["active"] for row in answer("stats", "--topology", "school-erp")["queues"].values()
    )


@pytest.mark.row("004.12")
def test_a_subscriber_that_fails_stops_no_other_and_the_staff_are_told(
    sink: SmtpSink, working: Working, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setenv("SAQKIT_SUBSCRIBERS", "mine:subscribe")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with working(*worker("school-erp")) as log:
        exam = publish("school-erp", "exam:created", "", {"exam": "Maths", "day": "2040-02-03"}, "--tenant", "north")
        arrived(sink, 3)  # two parents, and of the failure one of the staff
        rows = ended("school-erp")
    by_name = {row["subscriber"]: row for row in rows if row["topic"] == "exam:created"}
    assert {name: (row["completed"], row["failed"]) for name, row in by_name.items()} == {
        "": (1, 0), "breaks": (0, 1), "tell_parents": (1, 0), "update_records": (1, 0)}  # fmt: skip
    assert {one.recipients[0] for one in sink.messages} == PARENTS | STAFF
    (told,) = [one for one in sink.messages if one.recipients[0] in STAFF]
    assert "events:breaks has failed for good: RuntimeError: the timetable is away" in str(told.message["Subject"])
    assert told.message["X-Correlation-ID"] == exam["correlation_id"]
    (failed,) = [line for line in lines(log) if "failed in attempt 1 of 1" in line["message"]]
    assert (failed["event_id"], failed["correlation_id"]) == (exam["id"], exam["correlation_id"])


@pytest.mark.row("002.11")
def test_an_event_that_was_published_while_the_broker_was_away_is_delivered_by_the_relay(
    sink: SmtpSink, working: Working
) -> None:
    away = saqkit("publish", "vote.created", "--topology", "voting", "--user", "1", "--json", "--data",
                  json.dumps({**MODEL, "votes": 3}), env={"REDIS_URL": "redis://127.0.0.1:1"})  # fmt: skip
    assert away.returncode == 0, away.stderr
    said = json.loads(away.stdout)
    assert (said["new"], said["enqueued"], said["subscribers"]) == (True, False, None)
    with working(*worker("voting")):
        arrived(sink, 1)
        ended("voting")
    assert [one.recipients[0] for one in sink.messages] == ["voter@v.example"]
    assert sink.messages[0].message["X-Correlation-ID"] == said["correlation_id"]


@pytest.mark.row("002.11", "002.12")
def test_saqs_own_workers_deliver_too_one_for_the_events_and_one_for_the_emails(
    sink: SmtpSink, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAQKIT_TOPOLOGY", "voting")
    saq = (str(Path(sys.executable).with_name("saq")), "saqkit.settings", "-v")
    monkeypatch.setenv("SAQKIT_QUEUE", "events")
    with working(*saq, ready="Worker starting"):
        monkeypatch.setenv("SAQKIT_QUEUE", "email")
        with working(*saq, ready="Worker starting"):
            publish("voting", "model.rank_changed", "", VOTING["model.rank_changed"][1])
            arrived(sink, 3)
            ended("voting")
    assert {one.recipients[0] for one in sink.messages} == SUPPORTERS


def test_what_starts_at_a_topic_is_what_subscribes_to_it() -> None:
    systems = {"voting": ["voting"], "school-erp": ["academic", "attendance", "examination", "system"]}
    for name, groups in systems.items():
        topology = load(name)
        assert sorted(topology.topics) == sorted(topic for group in groups for topic in GROUPS[group])
        subscribed = {(topic, one.job_type) for one, topics in subscribers_of(topology) for topic in topics}
        assert subscribed == {(topic, job) for topic, one in topology.topics.items() for job in one.starts}


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown topic": (("vote.creatd",), 'there is no topic "vote.creatd" (did you mean "vote.created"?)'),
    "a topology without topics": (("x", "--topology", "course-platform"), "topology course-platform has no topics"),
    "nobody subscribes": (("event.created", "--topology", "school-events"), "nobody subscribes to the topics of"),
    "data that is no JSON": (("vote.created", "--data", "{"), "--data: is no JSON"),
    "data that is no object": (("vote.created", "--data", "[1]"), "--data: is no JSON object but [1]"),
    "what the email needs": (("vote.created", "--user", "1", "--data", '{"model": 7}'),
                             "event vote.created: model_name and votes missing in its data"),
    "a value that is none": (("reward.earned", "--user", "1", "--data", '{"reward": 7, "reward_name": ["x"]}'),
                             "event reward.earned: reward_name is no small value"),
    "nobody is named": (("referral.milestone", "--data", '{"referrals": 3}'), "referral.milestone: names no user"),
    "a user who is no id": (("referral.milestone", "--user", "ann", "--data", '{"referrals": 3}'),
                            'event referral.milestone: user "ann" is nobody'),
    "a tenant that is not there": (("referral.milestone", "--user", "1", "--tenant", "noth", "--data",
                                    '{"referrals": 3}'), 'there is no tenant "noth" in this database'),
    "an envelope that cannot be": (("referral.milestone", "--user", "1", "--tenant", "a b", "--data",
                                    '{"referrals": 3}'), "event referral.milestone: tenant"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_published_is_refused_in_one_line(case: str, redis_url: str) -> None:
    arguments, message = REFUSED[case]
    named = () if "--topology" in arguments else ("--topology", "voting")
    done = saqkit("publish", *arguments, *named)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    with redis.Redis.from_url(redis_url) as broker:
        assert broker.dbsize() == 0


def test_a_worker_whose_own_subscribers_cannot_be_found_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAQKIT_SUBSCRIBERS", "nowhere:subscribe")
    done = subprocess.run([*worker("voting")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'SAQKIT_SUBSCRIBERS: "nowhere:subscribe" cannot be found' in done.stderr


def test_people_read_who_gets_an_event(working: Working, sink: SmtpSink) -> None:
    data = json.dumps({**MODEL, "votes": 3})
    told = ("publish", "vote.created", "--topology", "voting", "--user", "1", "--data", data)
    first = saqkit(*told, "--id", "v-1")
    assert "event v-1 on vote.created: elapsed_ms " in first.stdout
    assert "; it is queued\nsubscribers: none yet (start `saqkit worker voting`)\n" in first.stdout
    with working(*worker("voting")):
        arrived(sink, 1)
        assert "subscribers: on_vote_created\n" in saqkit(*told, "--id", "v-1").stdout
        ended("voting")
        shown = saqkit("events", "--topology", "voting").stdout.splitlines()
        assert shown[0].split() == ["topic", "subscriber", "waiting", "delayed", "active", "completed", "failed"]
        assert [line.split() for line in shown if "on_vote_created" in line] == [
            ["vote.created", "on_vote_created", "0", "0", "0", "1", "0"]]  # fmt: skip
