"""Every kind of bad input: one line that names the file, the key, what was given, and what is probably meant."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from saqkit.errors import DescriptionError
from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Burst, Workload

GOOD = """
name = "t"
entry = [{ topic = "made" }]

[topics.made]
starts = ["announce"]

[queues.mail]
concurrency = 5
rate_limit = { limit = 10 }

[job_types.announce]
queue = "mail"
fan_out = { to = "notify" }

[job_types.notify]
queue = "mail"
per_user = { provider = "email" }
retry = { backoff = "list", delays_s = [5, 25] }

[job_types.audit]
queue = "mail"

[providers.email]
latency = { kind = "lognormal", mean_s = 0.1 }
"""


def refusal(tmp_path: Path, old: str, new: str) -> DescriptionError:
    """What is said of the good file with `old` replaced by `new`."""
    assert old in GOOD
    path = tmp_path / "t.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(DescriptionError) as caught:
        load(path)
    assert caught.value.source == str(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_good_file_is_good() -> None:
    assert Topology.parse(tomllib.loads(GOOD)).name == "t"


@pytest.mark.parametrize(
    ("old", "new", "key", "said"),
    [
        # misspelt keys, at each depth
        ('name = "t"', 'name = "t"\ntitel = "x"', "titel", 'unknown key "titel" (did you mean "title"?)'),
        ("concurrency = 5", "concurency = 5", "queues.mail.concurency", '(did you mean "concurrency"?)'),
        ("concurrency = 5", "CONCURRENCY = 5", "queues.mail.CONCURRENCY", '(did you mean "concurrency"?)'),
        ("limit = 10", "limit = 10, perod_s = 1", "queues.mail.rate_limit.perod_s", '(did you mean "period_s"?)'),
        ('to = "notify"', 'too = "notify"', "job_types.announce.fan_out.too", '(did you mean "to"?)'),
        ('provider = "email"', 'providr = "email"', "job_types.notify.per_user.providr", '(did you mean "provider"?)'),
        ("mean_s = 0.1", "mean = 0.1", "providers.email.latency.mean", '(did you mean "mean_s"?)'),
        ("mean_s = 0.1", "mean_s = 0.1, vc = 1", "providers.email.latency.vc", '(did you mean "cv"?)'),
        ('topic = "made"', 'topc = "made"', "entry.0.topc", '(did you mean "topic"?)'),
        # a key that stands one table too high
        ('[job_types.notify]\n', "[job_types.notify]\nmax_attempts = 2\n", "job_types.notify.max_attempts",
         'did you mean "retry.max_attempts"?'),
        ("concurrency = 5", "limit = 5", "queues.mail.limit", 'did you mean "rate_limit.limit"?'),
        # values out of bounds
        ("mean_s = 0.1", "mean_s = -0.1", "providers.email.latency.mean_s", "should be greater than 0 (given: -0.1)"),
        ("mean_s = 0.1", "mean_s = nan", "providers.email.latency.mean_s", "should be a finite number (given: nan)"),
        ("mean_s = 0.1", "mean_s = inf", "providers.email.latency.mean_s", "should be a finite number (given: inf)"),
        ("mean_s = 0.1", "mean_s = 1, cv = 21", "providers.email.latency.cv", "less than or equal to 20 (given: 21)"),
        ("concurrency = 5", "concurrency = 0", "queues.mail.concurrency", "should be greater than 0 (given: 0)"),
        ("concurrency = 5", "tick_s = -1", "queues.mail.tick_s", "should be greater than 0 (given: -1)"),
        ("[5, 25]", "[5, -25]", "job_types.notify.retry.delays_s.1", "greater than or equal to 0 (given: -25)"),
        ('{ topic = "made" }', '{ topic = "made", share = 0 }', "entry.0.share", "greater than 0 (given: 0)"),
        ("[providers.email]", "[providers.email]\npermanent_share = 1.5", "providers.email.permanent_share",
         "less than or equal to 1 (given: 1.5)"),
        # wrong types
        ("concurrency = 5", 'concurrency = "many"', "queues.mail.concurrency", "should be a valid integer"),
        ("concurrency = 5", "concurrency = 2.5", "queues.mail.concurrency", "(given: 2.5)"),
        ("concurrency = 5", "concurrency = true", "queues.mail.concurrency", "not be true or false (given: true)"),
        ("mean_s = 0.1", f"mean_s = {10**400}", "providers.email.latency.mean_s", "should be a "),
        ("concurrency = 5", "concurrency = [5]", "queues.mail.concurrency", "should be a valid integer (given: [5])"),
        ("{ limit = 10 }", "10", "queues.mail.rate_limit", "should be a table (given: 10)"),
        ('["announce"]', '"announce"', "topics.made.starts", "should be a list (given: 'announce')"),
        ('["announce"]', "[]", "topics.made.starts", "should have at least 1 item"),
        ('entry = [{ topic = "made" }]', "entry = []", "entry", "should have at least 1 item, not 0"),
        ('name = "t"', "name = 5", "name", "should be a valid string (given: 5)"),
        ('name = "t"', 'name = "my topology"', "name", "is no name: a letter, then at most 63 letters"),
        ("[job_types.audit]", '[job_types."1 audit"]', "job_types.1 audit", "is no name"),
        ('{ kind = "lognormal", mean_s = 0.1 }', "0.1", "providers.email.latency", "should be a table (given: 0.1)"),
        # missing keys
        ('name = "t"', "", "name", "name: is missing"),
        ("mean_s = 0.1", "cv = 1", "providers.email.latency.mean_s", "is missing"),
        ('to = "notify"', "batch_size = 10", "job_types.announce.fan_out.to", "is missing"),
        ('[job_types.audit]\nqueue = "mail"', "[job_types.audit]", "job_types.audit.queue", "is missing"),
        ('{ topic = "made" }', "{ share = 1 }", "entry.0", "exactly one of topic and job_type"),
        ('backoff = "list", delays_s = [5, 25]', 'backoff = "list"', "job_types.notify.retry", "delays_s = [5, 25]"),
        ('backoff = "list"', 'backoff = "fixed"', "job_types.notify.retry", 'goes with backoff = "list", not "fixed"'),
        # choices
        ('"lognormal"', '"gama"', "providers.email.latency.kind", 'there is no kind "gama" (did you mean "gamma"?)'),
        ('"lognormal"', '"zzz"', "providers.email.latency.kind", "(known: constant, empirical, exponential, gamma,"),
        ('kind = "lognormal", ', "", "providers.email.latency.kind", "is missing (one of constant, exponential,"),
        ('backoff = "list"', 'backoff = "lst"', "job_types.notify.retry.backoff", 'did you mean "list"?'),
        ("limit = 10", 'limit = 10, unit = "job"', "queues.mail.rate_limit.unit", 'did you mean "jobs"?'),
        ('{ topic = "made" }', '{ topic = "made", priority = "hgh" }', "entry.0.priority", 'did you mean "high"?'),
        ('{ topic = "made" }', '{ topic = "made", priority = 5 }', "entry.0.priority", "1, 2, 3 or 4 (given: 5)"),
        # names that are not defined
        ('to = "notify"', 'to = "notfy"', "job_types.announce.fan_out.to", 'job type "notfy" (did you mean "notify"?)'),
        ('[job_types.audit]\nqueue = "mail"', '[job_types.audit]\nqueue = "mial"', "job_types.audit.queue",
         'there is no queue "mial" (did you mean "mail"?)'),
        ('provider = "email"', 'provider = "emial"', "job_types.notify.per_user.provider", 'did you mean "email"?'),
        ('topic = "made"', 'topic = "mad"', "entry.0.topic", 'there is no topic "mad" (did you mean "made"?)'),
        ('topic = "made"', 'job_type = "anounce"', "entry.0.job_type", 'did you mean "announce"?'),
        ('["announce"]', '["anounce"]', "topics.made.starts.0", 'did you mean "announce"?'),
        ('[job_types.audit]\nqueue = "mail"', '[job_types.audit]\nqueue = "mail"\nfollow_up = [{ to = "x" }]',
         "job_types.audit.follow_up.0.to", 'there is no job type "x"'),
        # the whole
        ('{ topic = "made" }', '{ topic = "made", share = 0.5 }', "entry", "the shares add up to 0.5, not to 1"),
        ('[job_types.audit]\nqueue = "mail"', '[job_types.audit]\nqueue = "mail"\nfollow_up = [{ to = "audit" }]',
         "job_types.audit.follow_up.0.to", "cycle: audit -> audit"),
        ('[job_types.notify]\n', '[job_types.notify]\nfollow_up = [{ to = "announce" }]\n',
         "job_types.notify.follow_up.0.to", "fans out to all users of the event again"),
        ('fan_out = { to = "notify" }', 'fan_out = { to = "notify" }\nper_user = { cpu_us = 5 }', "job_types.announce",
         'per_user means nothing beside fan_out: it belongs to "notify"'),
        ('fan_out = { to = "notify" }', 'fan_out = { to = "notify" }\nsend_concurrency = 5', "job_types.announce",
         "send_concurrency means nothing beside fan_out"),
        ('fan_out = { to = "notify" }', 'fan_out = { to = "notify" }\nfollow_up = [{ to = "audit" }]',
         "job_types.announce", "follow_up means nothing beside fan_out"),
        ('[job_types.audit]\nqueue = "mail"',
         '[job_types.audit]\nqueue = "mail"\nwork = "payment-check"\nper_user = { cpu_us = 5 }',
         "job_types.audit", 'per_user means nothing beside work = "payment-check"'),
        ('[job_types.audit]\nqueue = "mail"',
         '[job_types.audit]\nqueue = "mail"\nwork = "payment-check"\nsend_concurrency = 5',
         "job_types.audit", 'send_concurrency means nothing beside work = "payment-check"'),
        ("[job_types.audit]", '[queues.idle]\nrate_limit = { limit = 1, unit = "users" }\n[job_types.audit]',
         "queues.idle.rate_limit.unit", "limits users, but no job of this queue has any"),
    ],
)  # fmt: skip
def test_bad_input_is_named_by_file_key_and_value(tmp_path: Path, old: str, new: str, key: str, said: str) -> None:
    error = refusal(tmp_path, old, new)
    assert error.key == key
    assert said in str(error)


def test_a_longer_cycle_is_shown_whole() -> None:
    data = tomllib.loads(GOOD)
    data["job_types"]["audit"]["follow_up"] = [{"to": "notify"}]
    data["job_types"]["notify"]["follow_up"] = [{"to": "audit"}]
    with pytest.raises(DescriptionError, match=r"cycle: (audit -> notify -> audit|notify -> audit -> notify)"):
        Topology.parse(data)


def test_a_chain_of_thousands_of_job_types_is_no_cycle() -> None:
    data = tomllib.loads(GOOD)
    for n in range(3000):
        data["job_types"][f"j{n}"] = {"queue": "mail", "follow_up": [{"to": f"j{n + 1}"}] if n < 2999 else []}
    assert len(Topology.parse(data).job_types) == 3003


def test_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    error = refusal(tmp_path, "concurrency = 5", "concurrency 5")
    assert "is not valid TOML" in str(error)
    line = GOOD.splitlines().index("concurrency = 5") + 1
    assert f"line {line}" in str(error)


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 100_000, "a = 1\na = 2", "\0"])
def test_what_no_toml_reader_can_read_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.toml"
    path.write_text(text)
    with pytest.raises(DescriptionError, match="is not valid TOML") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    missing, folder, latin = tmp_path / "no.toml", tmp_path / "folder.toml", tmp_path / "latin.toml"
    folder.mkdir()
    latin.write_bytes(b'name = "t"\ntitle = "\xfcber"\n')
    for path, said in [
        (missing, "cannot be read: No such file or directory"),
        (folder, "cannot be read: Is a directory"),
        (latin, "is not UTF-8 text: byte 0xfc in line 2 (save the file as UTF-8)"),
    ]:
        with pytest.raises(DescriptionError) as caught:
            load(str(path))
        assert str(caught.value) == f"{path}: {said}"


def test_an_unknown_shipped_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DescriptionError) as caught:
        load("school-event")
    assert 'no shipped topology is called "school-event" (did you mean "school-events"?' in str(caught.value)
    assert "path of a TOML file" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "key", "said"),
    [
        ({"arrivals": {"kind": "burst"}}, "arrivals.users", "is missing"),
        ({"arrivals": {"kind": "burst", "users": 0}}, "arrivals.users", "greater than 0 (given: 0)"),
        ({"arrivals": {"kind": "burst", "users": 2**31}}, "arrivals.users", "less than or equal to 2000000000"),
        ({"arrivals": {"kind": "burst", "burst": 5}}, "arrivals.burst", 'unknown key "burst"'),
        ({"arrivals": {"kind": "poison"}}, "arrivals.kind", 'did you mean "poisson"?'),
        ({"arrivals": {"kind": "poisson", "rate_per_s": 1, "duration": 5}}, "arrivals.duration", '"duration_s"?'),
        ({"arrivals": {"kind": "profile", "users_per_day": 1, "hourly": [1] * 23}}, "arrivals.hourly", "at least 24"),
        ({"arrivals": {"kind": "profile", "users_per_day": 1, "hourly": [0] * 24}}, "arrivals", "must not all be 0"),
        ({"arrivals": {"kind": "recorded", "at_s": [1, 2], "users": [1]}}, "arrivals", "2 times and 1 numbers"),
        ({"arrivals": {"kind": "burst", "users": 1}, "faults": [{"kind": "kill_worker", "at": 1}]}, "faults.0.at",
         'did you mean "at_s"?'),
        ({"arrivals": {"kind": "burst", "users": 1}, "faults": [{"kind": "kill_workr", "at_s": 1}]}, "faults.0.kind",
         'did you mean "kill_worker"?'),
    ],
)  # fmt: skip
def test_a_wrong_workload_is_named_without_the_marks_of_its_unions(data: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        Workload.parse(data, "w.toml")
    assert caught.value.key == key
    assert said in str(caught.value)


def test_faults_must_hit_what_exists() -> None:
    topology, deployment = load("school-events"), Deployment(hosts=2, workers=3)
    arrivals = {"kind": "burst", "users": 1}
    good = {"arrivals": arrivals, "faults": [{"kind": "kill_worker", "at_s": 1, "worker": 5}]}
    Workload.parse(good).check(topology, deployment)
    for fault, key, said in [
        ({"kind": "kill_worker", "at_s": 1, "worker": 6}, "faults.0.worker", "from 0 to 5"),
        ({"kind": "provider_outage", "at_s": 1, "duration_s": 1, "provider": "mail"}, "faults.0.provider", '"email"?'),
    ]:
        with pytest.raises(DescriptionError) as caught:
            Workload.parse({"arrivals": arrivals, "faults": [fault]}).check(topology, deployment)
        assert caught.value.key == key
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "key", "said"),
    [
        ({"workers": 0}, "workers", "greater than 0 (given: 0)"),
        ({"wokers": 1}, "wokers", 'did you mean "workers"?'),
        ({"concurrency": {"mail": 0}}, "concurrency.mail", "greater than 0 (given: 0)"),
        ({"concurrency": "ten"}, "concurrency", "valid integer"),
        ({"network_round_trip_ms": 1}, "", "needs hosts > 1"),
        ({"workers": 2, "groups": [{"queues": ["a"]}]}, "", "workers means nothing with groups"),
        ({"groups": [{"queues": ["a", "a"]}]}, "", "names a queue twice"),
        ({"groups": [{"queues": []}]}, "groups.0.queues", "at least 1 item"),
    ],
)
def test_a_wrong_deployment_is_named(data: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        Deployment.parse(data, "d.toml")
    assert caught.value.key == key
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("data", "key", "said"),
    [
        ({"concurrency": {"notification": 3}}, "concurrency", 'did you mean "notifications"?'),
        ({"groups": [{"queues": ["notification"]}]}, "groups.0.queues", 'did you mean "notifications"?'),
    ],
)
def test_a_deployment_may_only_name_queues_of_its_topology(data: dict[str, Any], key: str, said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        Deployment.parse(data).check(load("school-events"))
    assert caught.value.key == key
    assert said in str(caught.value)


def test_a_queue_that_no_process_serves_is_named() -> None:
    topology = Topology.parse(tomllib.loads(GOOD + "[queues.other]\n"))
    with pytest.raises(DescriptionError, match='no process serves queue "other"'):
        Deployment.parse({"groups": [{"queues": ["mail"]}]}).check(topology)
    Deployment.parse({"groups": [{"queues": ["mail"]}, {"queues": ["other"], "processes": 2}]}).check(topology)


def test_python_calls_fail_with_the_same_error_as_files() -> None:
    with pytest.raises(DescriptionError, match=r"^users: should be greater than 0 \(given: 0\)$"):
        Burst(users=0)
    with pytest.raises(DescriptionError, match=r"^users: should be greater than 0 \(given: -1\)$"):
        Workload.burst(-1)
    with pytest.raises(DescriptionError, match="batch_size: should be greater than 0"):
        load("school-events").with_batch_size(0)


def test_a_very_long_or_many_lined_value_is_still_one_line() -> None:
    topology = load("school-events")
    for value in ("x" * 100_000, "a\nb\nc"):
        with pytest.raises(DescriptionError) as caught:
            override(topology, {"queues.notifications.concurrency": value})
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)
    with pytest.raises(DescriptionError) as caught:
        Topology.parse({**topology.to_dict(), "two\nlines": 1})
    assert "\n" not in str(caught.value)
