"""Sealed fields: no plaintext anywhere but in the function, damaged or moved ones are noticed, keys can be replaced."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import jinja2
import pytest
import redis.asyncio as aioredis
from hypothesis import given
from hypothesis import strategies as st
from saq.job import Job, Status
from saq.worker import Worker as SaqWorker

from saqkit.broker import PrivateBroker
from saqkit.errors import UsageError
from saqkit.queue.dead_letters import dead_letters, dead_letters_frame, get, replay
from saqkit.queue.payload import HIDDEN, MARK, Payload, PayloadKeys, hide, is_sealed, secrets_of
from saqkit.queue.queue import Queue
from saqkit.worker.worker import Worker

MakeQueue = Callable[..., Queue]
Until = Callable[..., Awaitable[float]]
K1, K2 = bytes(range(32)), bytes(range(32, 64))
OLD, NEW = PayloadKeys({"k1": K1}), PayloadKeys({"k2": K2, "k1": K1})
ENCRYPT = {"pay": ["iban", "person"]}

IBAN = "DE02120300000000202051"
PERSON = {"name": 'Ada "Countess" Löwenherz', "mail": ["ada.loewenherz@example.org"], "birth": 18151210}
SECRETS = [IBAN, "Countess", "Löwenherz", "L\\u00f6wenherz", "ada.loewenherz@example.org", "18151210"]
OPEN = "invoice 4711-0815"


def payload(keys: PayloadKeys | None = OLD, **more: Any) -> Payload:
    return Payload(encrypt=ENCRYPT, keys=keys, **more)


async def body_of(queue: Queue, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await queue.redis.hget(queue.key_of(key), "body"))  # type: ignore[misc, arg-type]
    return found


# --- the promise -----------------------------------------------------------------------------------------------------


async def everything_stored(client: aioredis.Redis) -> bytes:
    """Every key and value of a server, as bytes."""
    found: list[bytes] = []
    read: dict[bytes, Callable[[bytes], Awaitable[Any]]] = {
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"string": client.get,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }  # type: ignore[dict-item]
    async for key in client.scan_iter(count=1000):
        value = await read[await client.type(key)](key)
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        found += [key, *(parts if isinstance(parts, list | set) else [parts])]
    return b"\n".join(found)


def leaks(text: str | bytes) -> list[str]:
    raw = text.encode() if isinstance(text, str) else text
    return [secret for secret in SECRETS if secret.encode() in raw]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of its own, with the folder of its append-only file."""
    folder = tmp_path / "server"
    private = PrivateBroker(folder=folder)
    yield private.start().url, folder
    private.stop()


@pytest.mark.parametrize("kind", ["saqkit", "saq"])
@pytest.mark.row("004.15")
async def test_no_plaintext_is_anywhere_but_in_the_function(
    server: tuple[str, Path], until: Until, caplog: pytest.LogCaptureFixture, tmp_path: Path, kind: str
) -> None:
    caplog.set_level(logging.DEBUG)
    url, folder = server
    queue = Queue.from_url(url, name="notifications", payload=payload())
    seen: list[Any] = []

    async def pay(ctx: dict[str, Any], *, iban: str, person: Any, invoice: str, how: str) -> Any:
        seen.append((iban, person, invoice))
        await ctx["job"].update(meta={**ctx["job"].meta, "begun": True})
        if how == "fail":
            raise ValueError(f"{iban} of {person} refused for {invoice}, {person['name']!r}, {json.dumps(person)}")
        return {"paid by": iban, "to": [person], person["birth"]: person["birth"], "for": invoice}

    given: dict[str, Any] = {"iban": IBAN, "person": PERSON, "invoice": OPEN}
    await queue.redis.set(queue.namespace("recording"), 1)
    assert await queue.submit("pay", {**given, "how": "pay"}, key="paid", ttl=0)
    assert await queue.submit("pay", {**given, "how": "fail"}, key="dead", retries=2, retry_delay=0.05)
    assert await queue.submit("pay", {**given, "how": "pay"}, key="later", delay_s=3600)
    assert await queue.enqueue_each("pay", [{**given, "how": "pay"}], keys=["each"], ttl=0) == ["each"]
    worker: Any
    if kind == "saq":
        worker = SaqWorker(queue, [("pay", pay)], concurrency=2)  # type: ignore[list-item]
        task = asyncio.create_task(worker.start())
    else:
        worker = Worker({"q": queue}, {"pay": pay}, {"q": 2}, name="w", grace_s=1)
        task = asyncio.create_task(worker.run())

    async def ended() -> bool:
        return (queue.complete, queue.failed) == (2, 1)

    await until(ended, 30)
    if kind == "saq":
        await worker.stop()
    else:
        worker.stop()
    await task
    assert seen == [(IBAN, PERSON, OPEN)] * 4  # two that were paid, two attempts of the one that fails

    letter = await get(queue, "dead")
    assert letter is not None
    assert letter.kwargs == {"iban": HIDDEN, "person": HIDDEN, "invoice": OPEN, "how": "fail"}
    assert f"refused for {OPEN}" in letter.error
    paid = await queue.job("paid")
    assert paid is not None
    assert paid.result == {"paid by": HIDDEN, "to": [{name: [HIDDEN] if name == "mail" else HIDDEN for name in PERSON}],
                           HIDDEN: HIDDEN, "for": OPEN}  # fmt: skip

    stored = await everything_stored(queue.redis)
    files = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    frame = await dead_letters_frame(queue)
    frame.to_csv(tmp_path / "letters.csv")
    frame.to_parquet(tmp_path / "letters.parquet", compression="none")
    exported = b"".join((tmp_path / f"letters.{ending}").read_bytes() for ending in ("csv", "parquet"))
    told = ""
    for words in (["list"], ["show", "dead"], ["export", str(tmp_path / "letters.json")]):
        command = [sys.executable, "-m", "saqkit.cli", "dlq", *words]
        told += await asyncio.to_thread(
            subprocess.check_output, command, env={**os.environ, "REDIS_URL": url}, text=True
        )
    told += (tmp_path / "letters.json").read_text()
    told += str(await queue.info(jobs=True)) + repr(await queue.job("later")) + repr(letter) + str(paid.to_dict())
    for place in (stored, files, exported, told):
        assert OPEN.encode() in (place if isinstance(place, bytes) else place.encode())  # the search does find things
        assert leaks(place) == []
    assert "refused for" in caplog.text  # the stack is in the log
    assert leaks(caplog.text) == []

    assert await replay(queue, ["dead"]) == [True]
    assert leaks(await everything_stored(queue.redis)) == []
    await queue.disconnect()


# --- keys ------------------------------------------------------------------------------------------------------------


async def taken(queue: Queue) -> Job:
    job = await queue.dequeue(timeout=10)
    assert job is not None
    job.attempts += 1
    return job


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (payload(PayloadKeys({"k1": K2})), 'does not open with key "k1"'),
        (payload(PayloadKeys({"k9": K1})), 'is sealed with key "k1", which is not here (k9 '),
        (None, "is sealed, and there is no key here"),
        (Payload(redact={"pay": ["other"]}), "is sealed, and there is no key here"),
    ],
    ids=["wrong", "other", "no payload", "no keys"],
)
async def test_a_job_that_a_worker_cannot_open_is_a_dead_letter_undamaged_and_replays_with_the_right_key(
    make_queue: MakeQueue, sound: Callable[[Queue], Awaitable[None]], until: Until, wrong: Payload | None, text: str
) -> None:
    right, worker = make_queue(payload=payload()), make_queue(payload=wrong)
    await right.submit("pay", {"iban": IBAN, "n": 1}, key="k", retries=5)
    before = await body_of(right, "k")
    await right.enqueue("free", key="free")
    job = await taken(worker)
    assert job.key == "free"  # its neighbour is none the worse

    async def dead() -> bool:
        return await right.count("dead") == 1

    await until(dead, 10)
    letter = await get(right, "k")
    assert letter is not None
    assert letter.error.startswith("unreadable: UsageError('its iban ")
    assert text in letter.error
    assert letter.kwargs == {"iban": HIDDEN, "n": 1}
    assert await body_of(right, "k") == before
    await sound(right)
    await worker.finish(job, Status.COMPLETE)
    await worker.disconnect()
    assert await replay(right, ["k"]) == [True]
    again = await taken(right)
    assert again.kwargs == {"iban": IBAN, "n": 1}


async def test_keys_are_replaced_without_a_stop(make_queue: MakeQueue) -> None:
    old, new = make_queue(payload=payload(OLD)), make_queue(payload=payload(NEW))
    await old.submit("pay", {"iban": IBAN}, key="old", retries=3)
    await new.submit("pay", {"iban": IBAN}, key="new", retries=3)
    assert (await body_of(new, "old"))["kwargs"]["iban"][MARK][0] == "k1"
    assert (await body_of(new, "new"))["kwargs"]["iban"][MARK][0] == "k2"
    for key in ("old", "new"):
        sealed = (await body_of(new, key))["kwargs"]["iban"]
        job = await taken(new)
        assert (job.key, job.kwargs) == (key, {"iban": IBAN})
        await new.retry(job, "ValueError: no")
        assert (await body_of(new, key))["kwargs"]["iban"] == sealed  # as it was, not sealed once more


async def test_what_was_enqueued_before_fields_were_marked_runs_and_is_sealed_from_then_on(
    make_queue: MakeQueue,
) -> None:
    plain, sealing = make_queue(), make_queue(payload=payload())
    await plain.enqueue("pay", key="k", iban=IBAN, retries=2)
    job = await taken(sealing)
    assert job.kwargs == {"iban": IBAN}
    await sealing.retry(job, f"ValueError: {IBAN}")
    body = await body_of(plain, "k")
    assert is_sealed(body["kwargs"]["iban"])
    assert IBAN not in json.dumps(body)


@pytest.mark.parametrize("where", ["another job", "another field", "another function", "cut", "changed"])
async def test_an_envelope_opens_only_where_it_belongs_and_as_it_was(
    make_queue: MakeQueue, until: Until, where: str
) -> None:
    queue = make_queue(payload=payload())
    await queue.submit("pay", {"iban": IBAN}, key="a", delay_s=3600)
    await queue.submit("pay", {"iban": "DE00", "person": "x"}, key="b")
    stolen, body = (await body_of(queue, "a"))["kwargs"]["iban"], await body_of(queue, "b")
    own = body["kwargs"]["iban"][MARK][1]
    if where == "another job":
        body["kwargs"]["iban"] = stolen
    elif where == "another field":
        body["kwargs"]["person"] = body["kwargs"]["iban"]
    elif where == "another function":
        body["function"] = "show"
    elif where == "cut":
        body["kwargs"]["iban"] = {MARK: ["k1", own[:8]]}
    else:
        body["kwargs"]["iban"] = {MARK: ["k1", ("A" if own[20] != "A" else "B").join((own[:20], own[21:]))]}
    await queue.redis.hset(queue.key_of("b"), "body", json.dumps(body))  # type: ignore[misc]
    assert await queue.dequeue(timeout=0.5) is None

    async def dead() -> bool:
        return await get(queue, "b") is not None

    await until(dead, 10)
    assert await body_of(queue, "b") == body


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    )
)
def test_whatever_json_holds_is_sealed_and_opened_again(value: Any) -> None:
    sealing = payload()
    if value == HIDDEN or is_sealed(value):
        return
    closed = sealing.close("k", "pay", {"iban": value, "n": 1}, {})
    assert is_sealed(closed["iban"])
    opened, pairs = sealing.open("k", "pay", json.loads(json.dumps(closed)))
    assert opened == {"iban": value, "n": 1}
    assert sealing.close("k", "pay", opened, pairs) == closed
    assert sealing.close("k", "pay", {"iban": value}, {})["iban"] != closed["iban"]  # a nonce of its own each time


async def test_dead_letters_are_replayed_with_other_values_and_in_another_queue(make_queue: MakeQueue) -> None:
    queue, there = make_queue(payload=payload()), make_queue("there", payload=payload())
    for key in ("here", "moves"):
        await queue.submit("pay", {"iban": IBAN, "n": 1}, key=key)
        await queue.finish(await taken(queue), Status.FAILED, error=f"ValueError: {IBAN}")
    with pytest.raises(UsageError, match=r"its iban is \*\*\*, as shown \("):
        await replay(queue, ["here"], kwargs={"iban": HIDDEN})
    assert await replay(queue, ["here"], kwargs={"iban": "FR76", "n": 2}) == [True]
    assert "FR76" not in json.dumps(await body_of(queue, "here"))
    assert (await taken(queue)).kwargs == {"iban": "FR76", "n": 2}
    assert await replay(queue, ["moves"], to=there) == [True]
    assert (await taken(there)).kwargs == {"iban": IBAN, "n": 1}


async def test_an_operator_without_keys_ends_a_waiting_job_without_reading_it(make_queue: MakeQueue) -> None:
    queue, operator = make_queue(payload=payload()), make_queue()
    await queue.submit("pay", {"iban": IBAN}, key="k")
    job = await operator.job("k")
    assert job is not None
    assert IBAN not in repr(job)
    await operator.finish(job, Status.COMPLETE)
    ended = await queue.job("k")
    assert ended is not None
    assert ended.status == Status.COMPLETE
    assert is_sealed((await body_of(queue, "k"))["kwargs"]["iban"])


# --- hiding ----------------------------------------------------------------------------------------------------------


async def test_a_field_that_is_only_redacted_is_stored_and_not_shown(make_queue: MakeQueue) -> None:
    queue = make_queue(payload=Payload(redact={"*": ["mail"], "send": ["name"]}))
    await queue.submit("send", {"mail": "ada@example.org", "name": "Ada", "n": 1}, key="k")
    assert (await body_of(queue, "k"))["kwargs"]["mail"] == "ada@example.org"
    job = await taken(queue)
    assert job.kwargs == {"mail": "ada@example.org", "name": "Ada", "n": 1}
    hidden = {"mail": HIDDEN, "name": HIDDEN, "n": 1}
    assert job.to_dict()["kwargs"] == hidden
    assert "ada@" not in repr(job)
    await queue.finish(job, Status.FAILED, error="Traceback\nValueError: ada@example.org of Ada, Adair, n=1")
    (letter,) = [letter async for letter in dead_letters(queue)]
    assert letter.kwargs == hidden
    assert letter.error.endswith("ValueError: *** of ***, Adair, n=1")  # a short one only as a word


def test_the_longest_is_hidden_first_and_every_way_of_writing() -> None:
    job = Job("pay", kwargs={"iban": 'a"b\nc', "person": [7, 'xa"b\nc', True, None, 2.5]})
    job.queue = type("Q", (), {"payload": payload()})()
    secrets = secrets_of(job)
    longest = 'xa"b\nc'
    text = f"{longest!r} {json.dumps([longest[1:]])} 7 77 2.5 True None"
    assert hide(text, secrets) == f"'{HIDDEN}' [\"{HIDDEN}\"] *** 77 *** True None"


def test_a_secret_is_hidden_as_it_stands_in_an_address_and_in_html() -> None:
    job = Job("pay", kwargs={"iban": "a/b+c=", "person": "Zoë 'n' \"Bo\" <&>"})
    job.queue = type("Q", (), {"payload": payload()})()
    secrets = secrets_of(job)
    for secret in ("a/b+c=", "Zoë 'n' \"Bo\" <&>"):
        templated = jinja2.Template("{{ text }}", autoescape=True).render(text=secret)
        forms = [quote(secret, safe=""), quote_plus(secret), html.escape(secret), templated]
        for form in (secret, *forms):
            assert hide(f"451 [{form}] refused", secrets) == f"451 [{HIDDEN}] refused"


def test_a_short_secret_is_hidden_as_a_word_and_no_word_loses_a_part() -> None:
    job = Job("pay", kwargs={"iban": "a/b+c=", "person": ["<", "t.", "ab"]})
    job.queue = type("Q", (), {"payload": payload()})()
    told = "5 &lt; 7 in table <b> at most. %3Cx a%2fb%2Bc%3d a%2fb%2bc%3d a%2Fb%2Bc%3D ab"
    assert hide(told, secrets_of(job)) == (
        f"5 &lt; 7 in table <b> at most. %3Cx a%2fb%2Bc%3d {HIDDEN} {HIDDEN} {HIDDEN}"
    )


async def test_what_the_kit_writes_into_a_meta_tells_no_secret_by_chance(make_queue: MakeQueue) -> None:
    queue = make_queue(payload=payload())
    own = {"keep_key_s": 86400.0, "retry_policy": {"delay_s": 86400.0}}
    for n, code in enumerate(("8640", "6400", "86400")):
        assert await queue.enqueue(Job("pay", key=f"k{n}", kwargs={"iban": code}, meta=own))
    for meta in ({"seen": 86400}, {"retry_policy": {"delay_s": "8640"}}, {"retry_policy": [["of 8640"]]}):
        with pytest.raises(UsageError, match="its meta has what is to be sealed in iban"):
            await queue.enqueue(Job("pay", kwargs={"iban": "8640"}, meta=meta))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"key": f"pay:{IBAN}"}, "its key has what is to be sealed in iban"),
        ({"meta": {"to": [IBAN]}}, "its meta has what is to be sealed in iban"),
        ({"kwargs": {"iban": HIDDEN}}, r"its iban is \*\*\*, as shown"),
        ({"kwargs": {"iban": b"DE"}}, "its iban is a bytes that JSON cannot hold"),
    ],
)
async def test_what_would_give_a_secret_away_is_refused_and_nothing_is_stored(
    make_queue: MakeQueue, given: dict[str, Any], text: str
) -> None:
    queue = make_queue(payload=payload())
    job = Job("pay", **{"kwargs": {"iban": IBAN}, **given})
    with pytest.raises(UsageError, match=text) as caught:
        await queue.enqueue(job)
    assert IBAN not in str(caught.value)
    assert await queue.count("incomplete") == 0


# --- settings --------------------------------------------------------------------------------------------------------


def b64(key: bytes) -> str:
    return base64.b64encode(key).decode()


def test_keys_come_from_the_environment_and_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAQKIT_PAYLOAD_KEYS", f"k2:{b64(K2)}, k1:{b64(K1)}")
    keys = PayloadKeys.from_environment()
    assert (keys.newest, repr(keys)) == ("k2", "PayloadKeys(k2, k1)")
    closed = Payload(encrypt=ENCRYPT).close("k", "pay", {"iban": IBAN}, {})
    assert payload(NEW).open("k", "pay", closed)[0] == {"iban": IBAN}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no payload keys"),
        (b64(K1), "number 1 has no id"),
        (f"k1:{b64(K1)},:{b64(K2)}", "number 2 has no id"),
        (f"k1:{b64(K1)},k1:{b64(K2)}", 'there are two "k1"'),
        (f"k1:{b64(K1)[:-4]}", 'payload key "k1": has 30 bytes'),
        ("k1:not base64!", 'payload key "k1": is not base64'),
    ],
)
def test_keys_that_are_none_are_refused_without_showing_them(
    monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setenv("SAQKIT_PAYLOAD_KEYS", text)
    with pytest.raises(UsageError, match=r"^[^\n]+\)$") as caught:
        Payload(encrypt=ENCRYPT)
    assert said in str(caught.value)
    assert not any(b64(key)[:10] in str(caught.value) for key in (K1, K2))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"encrypt": {"pay": "iban"}}, '"iban" is a text'),
        ({"encrypt": {"pay": []}}, "names no field"),
        ({"encrypt": {"pay": ["users"]}}, "users is read by the kit itself"),
        ({"redact": {"pay": ["event"]}}, "event is read by the kit itself"),
    ],
)
def test_fields_that_cannot_be_marked_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]+\)$") as caught:
        Payload(**wrong, keys=OLD)
    assert said in str(caught.value)


def test_bodies_that_are_no_json_cannot_have_sealed_fields(make_queue: MakeQueue) -> None:
    with pytest.raises(UsageError, match=r"queue q: fields are sealed in JSON bodies \("):
        make_queue(payload=payload(), dump=pickle.dumps, load=pickle.loads)


async def test_a_queue_without_marked_fields_writes_the_same_bodies(make_queue: MakeQueue) -> None:
    queue = make_queue()
    assert queue.plain
    await queue.enqueue("pay", key="k", iban=IBAN)
    assert (await body_of(queue, "k"))["kwargs"] == {"iban": IBAN}
    job = await taken(queue)
    assert "sealed" not in job.__dict__
    assert IBAN in repr(job)


def test_nothing_of_cryptography_is_loaded_where_nothing_is_sealed() -> None:
    code = "import sys; from saqkit.queue.queue import Queue; Queue.from_url('redis://nowhere'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert not [name for name in done.stdout.split() if name.startswith("cryptography.hazmat")]
