"""A provider that keeps what it is given: alone, and in the place of a real one in the reference application."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from measured import lab

from saqkit.app.announcing import Announcer
from saqkit.app.handlers import Application, after_process
from saqkit.app.mail import Email, Provider
from saqkit.app.store import Store
from saqkit.broker import Broker
from saqkit.errors import PermanentFailure, TemporaryFailure
from saqkit.queue.building import build_queues
from saqkit.testing import RecordingProvider, drain


def mail(user: int) -> Email:
    address = f"user{user}@users.example"
    return Email(1, user, 1, address, "Ada", "Closed", "Closed\n", None, f"<e1.u{user}@s.example>", "s@s.example")


async def outcomes(provider: Provider, *users: int) -> list[str]:
    found = []
    for user in users:
        try:
            await provider.send(mail(user))
            found.append("sent")
        except (TemporaryFailure, PermanentFailure) as failure:
            found.append(type(failure).__name__)
    return found


async def test_it_keeps_what_it_accepts_and_fails_whom_it_is_told_to() -> None:
    provider = RecordingProvider(
        refuse={"user1@users.example"}, defer={"user2@users.example": 2, "user4@users.example": math.inf}
    )
    assert await outcomes(provider, 1, 2, 3, 4, 1, 2, 4, 2, 4) == [
        "PermanentFailure", "TemporaryFailure", "sent", "TemporaryFailure",
        "PermanentFailure", "TemporaryFailure", "TemporaryFailure", "sent", "TemporaryFailure",
    ]  # fmt: skip
    assert [email.user for email in provider.sent] == [3, 2]
    assert [email.user for email in provider.tried] == [1, 2, 3, 4, 1, 2, 4, 2, 4]
    assert provider.sent_to("user3@users.example") == [mail(3)]
    provider.fail_next(2)
    assert await outcomes(provider, 5, 6, 7) == ["TemporaryFailure", "TemporaryFailure", "sent"]
    with pytest.raises(PermanentFailure, match="no email address"):
        await provider.send(replace(mail(8), to="nobody"))
    assert provider.closed is False
    await provider.close()
    assert provider.closed is True


async def test_the_reference_application_runs_on_it(saqkit_broker: Broker, tmp_path: Path) -> None:
    topology = lab(
        job_types__announce__fan_out={"to": "notify", "batch_size": 10},
        job_types__notify__retry={"max_attempts": 3, "backoff": "list", "delays_s": [300, 600]},
    )
    queues = build_queues(topology, saqkit_broker.url, prefix="recording-provider-")
    provider = RecordingProvider(
        refuse={"user7@users.example"}, defer={"user3@users.example": 1, "user15@users.example": math.inf}
    )
    store = await Store.open(f"sqlite:///{tmp_path}/data.db")
    application = Application(topology, store, queues, {"email": provider})
    try:
        await store.add_numbered_users(25)
        event = (await Announcer(topology, store, queues).announce(title="Closed", patience_s=5)).event
        drained = await drain(
            queues.values(),
            application.functions(),
            context={"application": application},
            after_process=after_process,
        )
        assert sorted(str(attempt) for attempt in drained.attempts) == [
            "announce 1 done", "notify 1 done", "notify 1 retry TemporaryFailure", "notify 1 retry TemporaryFailure",
            "notify 2 done", "notify 2 retry TemporaryFailure", "notify 3 dead TemporaryFailure",
        ]  # fmt: skip
        assert sorted(email.user for email in provider.sent) == [n for n in range(1, 26) if n not in (7, 15)]
        assert len({email.message_id for email in provider.sent}) == 23
        assert {email.subject for email in provider.sent} == {"Closed"}
        progress = await store.progress(event)
        assert (progress.users, progress.sent, progress.failed) == (25, 23, 2)
        assert 890 < drained.travelled_s < 910
    finally:
        await application.close()
        for queue in queues.values():
            await queue.disconnect()
    assert provider.closed
