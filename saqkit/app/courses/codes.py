"""Codes that somebody has to enter: kept as salted digests until they expire, and then cleaned away."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from typing import TYPE_CHECKING

from sqlalchemy import Connection, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from saqkit.app.database import Database
from saqkit.app.tables import codes
from saqkit.app.work import burn
from saqkit.errors import UsageError

if TYPE_CHECKING:
    from saqkit.app.handlers import Application
    from saqkit.app.works import Task

logger = logging.getLogger("saqkit")

LIFE_S = 600.0
MOST_TRIES = 5
"""A code of six digits is guessed in a million tries: after so many wrong ones it is worth nothing."""
CHUNK = 1_000
"""Rows deleted in one transaction, so that nobody waits for the writer's place behind a clean-up."""


class Codes:
    """The codes of a database, one for each tenant, address and purpose; every method is one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def issue(
        self, email: str, purpose: str, code: str, *, tenant: str = "", life_s: float = LIFE_S, at: float | None = None
    ) -> None:
        """Keep a code that is valid for `life_s`; the one before it is not any more."""
        if life_s <= 0:
            raise UsageError(f"a code that lives {life_s:g} s is of no use: more than 0")
        salt, expires = secrets.token_hex(16), (time.time() if at is None else at) + life_s
        place = {"tenant": tenant, "email": email.lower(), "purpose": purpose}
        fresh = {"salt": salt, "digest": _digest(salt, code), "tries": 0, "expires_at": expires}
        insert = sqlite.insert if self._database.dialect == "sqlite" else postgresql.insert
        put = insert(codes).values(**place, **fresh).on_conflict_do_update(index_elements=list(place), set_=fresh)
        await self._database.write(lambda connection: connection.execute(put))

    async def redeem(self, email: str, purpose: str, code: str, *, tenant: str = "", at: float | None = None) -> bool:
        """Whether the code is right, not expired and not used; from then on it is used."""
        now = time.time() if at is None else at
        which = (codes.c.tenant == tenant, codes.c.email == email.lower(), codes.c.purpose == purpose)

        def write(connection: Connection) -> bool:
            row = connection.execute(select(codes).where(*which).with_for_update()).mappings().one_or_none()
            if row is None or row["expires_at"] <= now or row["tries"] >= MOST_TRIES:
                return False
            right = hmac.compare_digest(_digest(row["salt"], code), row["digest"])
            wrong = update(codes).where(*which).values(tries=row["tries"] + 1)
            connection.execute(delete(codes).where(*which) if right else wrong)
            return right

        return await self._database.write(write)

    async def clean(self, before: float, limit: int = CHUNK) -> int:
        """Delete at most `limit` codes that expired by `before`; returns how many."""
        key = tuple_(codes.c.tenant, codes.c.email, codes.c.purpose)
        oldest = select(codes.c.tenant, codes.c.email, codes.c.purpose).where(codes.c.expires_at <= before)
        gone = delete(codes).where(key.in_(oldest.order_by(codes.c.expires_at).limit(limit)))
        # Asked again here: one that was issued anew while PostgreSQL waited for its row is not expired.
        gone = gone.where(codes.c.expires_at <= before)
        return await self._database.write(lambda connection: connection.execute(gone).rowcount)


async def clean(application: Application, task: Task) -> list[int]:
    """The job that deletes expired codes, of all tenants."""
    burn(task.spec.cpu_us)
    kept, before, deleted = Codes(application.store.database), time.time(), 0
    while True:
        with task.attempt.database():
            count = await kept.clean(before)
        deleted += count
        if count < CHUNK:
            break
    logger.info("job %s: %d expired codes deleted", task.job.key, deleted)
    return task.users


def _digest(salt: str, code: str) -> str:
    return hashlib.sha256(f"{salt}:{code}".encode()).hexdigest()
