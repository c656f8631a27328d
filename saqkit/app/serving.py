"""Serving the users of one batch: CPU, then the provider, then a line in the ledger, for each of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from saqkit.app.attempt import Attempt, Stopwatch
from saqkit.app.ledger import Ledger
from saqkit.app.mail import Email, Provider, message_id
from saqkit.app.mail.gate import Gate
from saqkit.app.store import EventRow, Recipient, SendResult
from saqkit.app.work import burn
from saqkit.errors import PermanentFailure, TemporaryFailure
from saqkit.queue.payload import hide
from saqkit.spec.topology import JobType, Topology

if TYPE_CHECKING:
    from saqkit.app.emails.rendering import Rendered

logger = logging.getLogger("saqkit")


def channel_of(topology: Topology, spec: JobType) -> str:
    """By which channel a job type reaches users, as the ledger calls it."""
    name = spec.per_user.provider
    return topology.providers[name].channel if name is not None else "none"


class Serving:
    """The users of one attempt (execution `number` of its job), served `send_concurrency` at a time.

    `served`: users who are sent or refused for ever; `put_off`: the temporary failures of the others. Results go to
    `ledger` if there is one; each send passes the provider's `gate` if it has one. `written`: letters of their own, by
    user; the others are told what the event says.
    """

    def __init__(
        self,
        spec: JobType,
        event: EventRow,
        number: int,
        channel: str,
        provider: Provider | None,
        ledger: Ledger | None,
        attempt: Attempt,
        gate: Gate | None = None,
        written: Mapping[int, Rendered] | None = None,
    ) -> None:
        self._written = written or {}
        self.served: list[int] = []
        self.put_off: list[TemporaryFailure] = []
        self._spec, self._event, self._number, self._channel = spec, event, number, channel
        self._provider, self._ledger, self._attempt, self._gate = provider, ledger, attempt, gate
        self._sender = provider.sender if provider else "no-reply@saqkit.example"
        self._tells = logger.isEnabledFor(logging.DEBUG)

    async def serve(self, recipients: Sequence[Recipient]) -> None:
        """Try every recipient once. One failing user never stops the others."""
        lanes, remaining = min(self._spec.send_concurrency, len(recipients)), iter(recipients)
        if lanes <= 1:
            await self._lane(remaining)
            return
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(lanes):
                    group.create_task(_awaited(Stopwatch(self._attempt, self._lane(remaining))))
        except ExceptionGroup as errors:  # one says it all
            raise errors.exceptions[0] from errors

    async def _lane(self, recipients: Iterator[Recipient]) -> None:
        """Serve one user after the other, from an iterator that all lanes share.

        While the database takes no results nothing is sent: all of it would be repeated if this process died.
        """
        for recipient in recipients:
            if self._ledger is not None and self._ledger.behind:
                with self._attempt.database():
                    await self._ledger.flush()
            name = message_id(self._event.id, recipient.user, self._channel, sender=self._sender)
            failure = await self._send(recipient, name)
            if self._tells or failure is not None:
                self._tell(recipient.user, name, failure)
            if isinstance(failure, TemporaryFailure):
                self.put_off.append(failure)
                continue
            self._attempt.served(done=failure is None, failed=failure is not None)
            self.served.append(recipient.user)
            if self._ledger is not None:
                status: Literal["sent", "failed"] = "sent" if failure is None else "failed"
                self._ledger.add(SendResult(self._event.id, recipient.user, self._channel, status, name,
                                            str(failure or ""), time.time()))  # fmt: skip

    def _tell(self, user: int, name: str, failure: TemporaryFailure | PermanentFailure | None) -> None:
        ids = {"user": user, "message_id": name}
        if failure is None:
            logger.debug("user %d is served", user, extra=ids)
        else:
            how = "for now" if isinstance(failure, TemporaryFailure) else "for good"
            logger.info("user %d is not served %s: %s", user, how, failure, extra=ids)

    async def _send(self, recipient: Recipient, name: str) -> TemporaryFailure | PermanentFailure | None:
        attempt, event, provider = self._attempt, self._event, self._provider
        sampled, began = attempt.samples(recipient.user), time.thread_time()
        burn(self._spec.per_user.cpu_us)
        if provider is None:
            if sampled:  # nothing was awaited since: all of the thread's time was this user's
                attempt.step(recipient.user, "cpu", time.thread_time() - began)
            return None
        own = self._written.get(recipient.user)
        email = Email(
            event=event.id,
            user=recipient.user,
            attempt=self._number,
            to=recipient.email,
            name=recipient.name,
            subject=own.subject if own else event.title,
            text=own.text if own else f"{event.body or event.title}\n",
            html=own.html if own else None,
            message_id=name,
            sender=provider.sender,
        )
        if sampled:
            attempt.step(recipient.user, "cpu", time.thread_time() - began)
        return await deliver(email, provider, self._gate, attempt, sampled)


async def deliver(
    email: Email,
    provider: Provider,
    gate: Gate | None,
    attempt: Attempt,
    sampled: bool = False,
    secrets: Sequence[str] = (),
) -> TemporaryFailure | PermanentFailure | None:
    """Hand an email to its provider, through the gate if there is one; returns why that failed, if it did.

    The time it takes is added to `attempt`; `sampled`: it is recorded as a step too. `secrets`: texts in the email that
    are not to be logged, whatever a provider raises.
    """
    start = time.perf_counter()
    begins = start if gate is None else 0.0
    try:
        if gate is None:
            await provider.send(email)
        else:
            async with gate.passing():
                begins = time.perf_counter()
                await provider.send(email)
    except (TemporaryFailure, PermanentFailure) as failure:
        return failure
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        if secrets:  # without the stack: it would have the text once more, and those of the error's causes
            logger.error("provider %s failed for user %d: %s", provider.name, email.user, hide(said, secrets))
        else:
            logger.exception("provider %s failed for user %d", provider.name, email.user)
        return TemporaryFailure(said)
    finally:
        ended = time.perf_counter()
        attempt.provider_s += ended - start
        if sampled and begins:  # what never began says nothing about the provider's times
            attempt.step(email.user, "provider", ended - begins, begins - start)
    return None


async def _awaited(work: Awaitable[None]) -> None:
    """A task wants a coroutine."""
    await work
