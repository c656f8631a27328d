"""Email and other messages: what one is, and the providers that deliver it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from saqkit.app.mail.message import Email, Provider, address_of, is_address, message_id
from saqkit.app.mail.simulated import Simulated
from saqkit.errors import DescriptionError
from saqkit.spec.topology import Topology

__all__ = ["Email", "Provider", "Simulated", "build_providers", "message_id"]


def build_providers(
    topology: Topology, seed: int, environ: Mapping[str, str] = os.environ, *, pool_size: int = 20
) -> dict[str, Provider]:
    """A provider per name of the topology; `seed` keys the simulated draws. `pool_size` bounds each SMTP pool where the
    topology gives no number of connections.

    `SAQKIT_SMTP_URL` in `environ` replaces every provider of emails by that server (see `smtp.Server.parse`),
    `SAQKIT_SMTP_SENDER` whom their messages are from. Raises `DescriptionError` for an address that is of no use.
    """
    url, sender = environ.get("SAQKIT_SMTP_URL"), environ.get("SAQKIT_SMTP_SENDER")
    if sender and not is_address(address_of(sender)):
        hint = "such as no-reply@school.example or School <no-reply@school.example>"
        raise DescriptionError("is no sender", key="SAQKIT_SMTP_SENDER", value=sender, hint=hint)
    providers: dict[str, Provider] = {}
    for name, spec in topology.providers.items():
        if spec.medium == "email":
            changes = {"kind": "smtp", "url": url} if url else {}
            spec = spec.model_copy(update=changes | ({"sender": sender} if sender else {}))
        if spec.kind == "smtp":
            from saqkit.app.mail.smtp import Smtp  # aiosmtplib takes a while to import, and most runs are simulated

            key = "SAQKIT_SMTP_URL" if url and spec.medium == "email" else f"providers.{name}.url"
            providers[name] = Smtp(name, spec, pool_size=spec.connections or pool_size, key=key)
        else:
            providers[name] = Simulated(name, spec, seed)
    return providers
