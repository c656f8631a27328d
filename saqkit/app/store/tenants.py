"""Tenants, and the institutions of each."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, select, text

from saqkit.app.store.part import Part
from saqkit.app.tables import institutions, tenants
from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody with people of their own; `created_at` in seconds since the epoch."""

    name: str
    title: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Institution:
    """A school, campus or branch of a tenant; `name` is unique inside the tenant."""

    tenant: str
    name: str
    title: str
    created_at: float


class Tenants(Part):
    """Who shares this database."""

    async def add(self, name: str, title: str = "") -> Tenant:
        """Make a tenant known, or give it another title. Raises `UsageError` for a name that is empty."""
        values = _named("a tenant", name, title)
        row = await self._database.write(lambda connection: connection.execute(_PUT_TENANT, values).one())
        return Tenant(*row)

    async def get(self, name: str) -> Tenant | None:
        found = select(tenants).where(tenants.c.name == name)
        row = await self._database.read(lambda connection: connection.execute(found).one_or_none())
        return Tenant(*row) if row else None

    async def all(self) -> list[Tenant]:
        """Every tenant, in order of name."""
        ordered = select(tenants).order_by(tenants.c.name)
        rows = await self._database.read(lambda connection: connection.execute(ordered).all())
        return [Tenant(*row) for row in rows]

    async def add_institution(self, tenant: str, name: str, title: str = "") -> Institution:
        """Make an institution of `tenant` known, or give it another title. `UsageError` if there is no such tenant."""
        values = {**_named("an institution", name, title), "tenant": tenant}

        def put(connection: Connection) -> Institution:
            if connection.execute(select(tenants.c.name).where(tenants.c.name == tenant)).scalar() is None:
                raise UsageError(f'there is no tenant "{tenant}"; add it first')
            return Institution(*connection.execute(_PUT_INSTITUTION, values).one())

        return await self._database.write(put)

    async def check_institution(self, tenant: str, name: str) -> None:
        """Raise `UsageError` if `tenant` does not have the institution `name`."""
        await self._database.read(lambda connection: require_institution(connection, tenant, name))

    async def institutions(self, tenant: str) -> list[Institution]:
        """Those of one tenant, in order of name."""
        own = select(institutions).where(institutions.c.tenant == tenant).order_by(institutions.c.name)
        rows = await self._database.read(lambda connection: connection.execute(own).all())
        return [Institution(*row) for row in rows]


def know_tenants(connection: Connection, names: Iterable[str], at: float) -> None:
    """Make sure that these are tenants, in the transaction of those who belong to them."""
    if values := [{"name": name, "at": at} for name in sorted(names)]:
        connection.execute(_KNOW_TENANT, values)


def know_institutions(connection: Connection, places: Iterable[tuple[str, str]], at: float) -> None:
    """Make sure that these, each a tenant and a name, are institutions; the tenants are known."""
    if values := [{"tenant": tenant, "name": name, "at": at} for tenant, name in sorted(places)]:
        connection.execute(_KNOW_INSTITUTION, values)


def require_institution(connection: Connection, tenant: str, name: str) -> None:
    """Raise `UsageError` if `tenant` does not have the institution `name`; another tenant's are not told."""
    found = select(institutions.c.name).where(institutions.c.tenant == tenant)
    if connection.execute(found.where(institutions.c.name == name)).scalar() is None:
        known = connection.execute(found.order_by(institutions.c.name).limit(1_000)).scalars().all()
        hint = did_you_mean(name, known) if known else "saqkit users import makes institutions known"
        raise UsageError(f'tenant "{tenant}" has no institution "{name}" in this database ({hint})')


def _named(kind: str, name: str, title: str) -> dict[str, str | float]:
    if not name.strip() or not name.isprintable():
        raise UsageError(f"{name!r} is no name of {kind}: one line that is not empty")
    return {"name": name, "title": title, "at": time.time()}


_KNOW_TENANT = text("INSERT INTO tenants (name, title, created_at) VALUES (:name, '', :at) ON CONFLICT DO NOTHING")
_KNOW_INSTITUTION = text(
    "INSERT INTO institutions (tenant, name, title, created_at) VALUES (:tenant, :name, '', :at) ON CONFLICT DO NOTHING"
)
_PUT_TENANT = text(
    "INSERT INTO tenants (name, title, created_at) VALUES (:name, :title, :at)"
    " ON CONFLICT (name) DO UPDATE SET title = excluded.title RETURNING name, title, created_at"
)
_PUT_INSTITUTION = text(
    "INSERT INTO institutions (tenant, name, title, created_at) VALUES (:tenant, :name, :title, :at)"
    " ON CONFLICT (tenant, name) DO UPDATE SET title = excluded.title RETURNING tenant, name, title, created_at"
)
