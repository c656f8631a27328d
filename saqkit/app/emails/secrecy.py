"""Codes and tokens in jobs: sealed where there is a key, and never shown."""

from __future__ import annotations

import os
from collections.abc import Mapping

from saqkit.app.emails.catalogue import EMAIL_TYPES
from saqkit.queue.payload import Payload, PayloadKeys, draw_curtain
from saqkit.queue.queue import Queue
from saqkit.spec.topology import Topology

__all__ = ["mark_secrets"]


def mark_secrets(topology: Topology, queues: Mapping[str, Queue], environ: Mapping[str, str] = os.environ) -> None:
    """Let the queues seal the secrets of emails if `SAQKIT_PAYLOAD_KEYS` has keys, else hide it where jobs are shown.

    A queue that was made with a `payload` of its own keeps that.
    """
    keys = environ.get("SAQKIT_PAYLOAD_KEYS")
    for name, queue in queues.items():
        here = {job_type for job_type, spec in topology.job_types.items() if spec.queue == name}
        secret = {kind.name: kind.secret for kind in EMAIL_TYPES.values() if kind.secret and kind.name in here}
        if secret and queue.payload is None:
            queue.payload = Payload(encrypt=secret, keys=PayloadKeys.parse(keys)) if keys else Payload(redact=secret)
            draw_curtain()
