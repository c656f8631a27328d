"""What a worker does with a job of an email type: look up whom it is for, render it, and send it.

An email that is repeated, because a worker died after it was sent and before that was known, has the same Message-ID.
What can never be sent (a user who is gone, a variable that is missing, a 5xx of the server) becomes a dead letter at
once; anything else is tried again as the retry policy says.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saq.job import Job

from saqkit.app.attempt import Attempt, Stopwatch
from saqkit.app.emails.catalogue import EMAIL_TYPES, ID_BITS, OPTIONAL, EmailType, Value, checked_data
from saqkit.app.emails.links import Links
from saqkit.app.emails.secrecy import mark_secrets
from saqkit.app.mail import Email, Provider
from saqkit.app.mail.gate import Gate
from saqkit.app.mail.message import address_of
from saqkit.app.serving import deliver
from saqkit.app.store import GONE, Recipient, Store
from saqkit.app.work import burn
from saqkit.errors import PermanentFailure, UsageError
from saqkit.log_lines import bound
from saqkit.queue.letter import ids_of, tenant_of
from saqkit.queue.payload import secrets_of
from saqkit.queue.queue import Queue
from saqkit.spec.topology import Topology

if TYPE_CHECKING:
    from saqkit.app.emails.rendering import Rendered, Renderer

__all__ = ["Sender", "message_id_of"]

logger = logging.getLogger("saqkit")
HOST = socket.gethostname()


class Sender:
    """Sends the emails of one worker process.

    If the topology has any, `FRONTEND_URL` and `SAQKIT_PAYLOAD_KEYS` of `environ` are heeded, and checked.
    """

    def __init__(
        self,
        topology: Topology,
        store: Store,
        queues: Mapping[str, Queue],
        providers: Mapping[str, Provider],
        gates: Mapping[str, Gate],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._topology, self._store, self._queues = topology, store, queues
        self._providers, self._gates = providers, gates
        if EMAIL_TYPES.keys() & topology.job_types.keys():
            from saqkit.app.emails.rendering import Renderer  # most workers send no such emails: they need no Jinja

            self._renderer: Renderer = Renderer(Links.from_environment(environ))
            mark_secrets(topology, queues, environ)

    def render(self, kind: EmailType, variables: Mapping[str, Value]) -> Rendered:
        """What an email of `kind` says; `PermanentFailure` if it cannot be rendered."""
        return self._renderer.render(kind, variables)

    async def handle(self, job_type: str, job: Job, given: Mapping[str, Any]) -> dict[str, Any]:
        """Send the email of a job whose arguments are `given`, and keep the attempt's books."""
        queue = self._queues[self._topology.job_types[job_type].queue]
        if (policy := queue.policy_of(job)) is not None:
            job.retries = policy.max_attempts  # a replayed dead letter may have been told that there is no other
        claim = queue.claim_of(job)
        attempt = Attempt(claim.facts if claim else {})
        attempt.begin(1, time.time() + queue.clock_offset_s)
        attempt.facts["host"] = HOST
        try:
            with bound(job=job.key, attempt=job.attempts, queue=self._topology.job_types[job_type].queue,
                       tenant=tenant_of(job.meta), **ids_of(job.meta)):  # fmt: skip
                return await Stopwatch(attempt, self._send(job_type, job, given, attempt))
        except PermanentFailure:
            job.retries = job.attempts  # no other attempt would end otherwise: it is recorded now
            raise
        finally:
            attempt.close()

    async def _send(self, job_type: str, job: Job, given: Mapping[str, Any], attempt: Attempt) -> dict[str, Any]:
        spec, kind = self._topology.job_types[job_type], EMAIL_TYPES[job_type]
        burn(spec.cpu_us + spec.per_user.cpu_us)
        name = spec.per_user.provider
        if name is None:
            raise PermanentFailure(f"email {kind.name}: job type {job_type} has no per_user.provider to send by")
        variables = dict(given)
        to = await self._recipient(kind, variables.pop("to", None), tenant_of(job.meta), attempt)
        known = variables.setdefault("first_name", to.name.partition(" ")[0])
        rendered = self._renderer.render(kind, variables)
        try:
            checked_data(kind, {name: variables[name] for name in (*kind.fields, *OPTIONAL)})
        except UsageError as error:  # of a job that somebody enqueued who did not ask first
            raise PermanentFailure(str(error)) from error
        provider, number = self._providers[name], _number(job_type, job.key)
        email = Email(
            event=number,
            user=to.user,
            attempt=job.attempts,
            to=to.email,
            name=to.name or str(known),
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
            message_id=message_id_of(job_type, job.key, _nonce(job), sender=provider.sender),
            sender=provider.sender,
            correlation_id=ids_of(job.meta).get("correlation_id", ""),
        )
        with bound(user=email.user or None, message_id=email.message_id):
            failure = await deliver(email, provider, self._gates.get(name), attempt, secrets=secrets_of(job))
            if failure is not None:
                raise failure
            attempt.served(done=1)
            logger.info("job %s: email %s sent", job.key, kind.name)
        return {"sent": email.message_id}

    async def _recipient(self, kind: EmailType, to: object, tenant: str, attempt: Attempt) -> Recipient:
        if isinstance(to, str):
            return Recipient(0, to, "")
        if not isinstance(to, int) or isinstance(to, bool) or to.bit_length() > ID_BITS:
            raise PermanentFailure(f"email {kind.name}: the job has no recipient (to: an address, or the id of a user)")
        with attempt.database():
            found = await self._store.recipient(to, tenant)
        if found is None:
            raise PermanentFailure(f"email {kind.name}: user {to}: {GONE}")
        return found


def message_id_of(job_type: str, key: str, nonce: str = "", *, sender: str) -> str:
    """The Message-ID of the email of a job, the same in every attempt; its domain is the sender's.

    `nonce`: that of the job's meta, which one whose key somebody chose has.
    """
    return f"<{_digest(job_type, key, nonce).hex()[:32]}@{address_of(sender).rpartition('@')[2] or 'localhost'}>"


def _nonce(job: Job) -> str:
    return str(job.meta.get("nonce") or "") if isinstance(job.meta, dict) else ""


def _digest(job_type: str, key: str, *more: str) -> bytes:
    return hashlib.sha256("\n".join(filter(None, (job_type, key, *more))).encode()).digest()


def _number(job_type: str, key: str) -> int:
    """What the draws about an email are keyed by, in place of an event's number."""
    return int.from_bytes(_digest(job_type, key)[:6])
