"""A call for each type of email."""

from __future__ import annotations

from typing import Unpack

from saqkit.app.emails.catalogue import Value
from saqkit.app.emails.queueing import EmailQueue, Options
from saqkit.queue.submitting import Submitted

__all__ = ["Emails"]


class Emails(EmailQueue):
    """`EmailQueue` with a call for each type. Every call takes `Options` and answers as `queue_email` does."""

    # --- the course platform -----------------------------------------------------------------------------------------

    async def send_verification_code(
        self, email: str, code: str, first_name: str = "", **options: Unpack[Options]
    ) -> Submitted:
        """The code that somebody who registers has to enter."""
        return await self.queue_email("verification-code", email, {"code": code, "first_name": first_name}, **options)

    async def send_password_reset(
        self, email: str, token: str, first_name: str = "", **options: Unpack[Options]
    ) -> Submitted:
        """The link with which a new password is chosen."""
        return await self.queue_email("password-reset", email, {"token": token, "first_name": first_name}, **options)

    async def send_welcome_email(self, user: int, course: int, **options: Unpack[Options]) -> Submitted:
        """A user is enrolled in a course."""
        return await self.queue_email("welcome", user, {"course": course}, **options)

    async def send_payment_receipt(self, user: int, payment: int, course: int, **options: Unpack[Options]) -> Submitted:
        """A user's payment for a course has been received."""
        return await self.queue_email("payment-receipt", user, {"payment": payment, "course": course}, **options)

    # --- the voting system -------------------------------------------------------------------------------------------

    async def send_vote_confirmation(
        self, to: str | int, *, model: int, model_name: str, votes: int = 1, **options: Unpack[Options]
    ) -> Submitted:
        """The votes that somebody has just given to a model have been counted."""
        data: dict[str, Value] = {"model": model, "model_name": model_name, "votes": votes}
        return await self.queue_email("vote-confirmation", to, data, **options)

    async def send_progress_update(
        self, to: str | int, *, model: int, model_name: str, percent: float, **options: Unpack[Options]
    ) -> Submitted:
        """A model has reached so much of its goal."""
        data: dict[str, Value] = {"model": model, "model_name": model_name, "percent": percent}
        return await self.queue_email("progress-update", to, data, **options)

    async def send_rank_update(
        self, to: str | int, *, model: int, model_name: str, rank: int, previous_rank: int, **options: Unpack[Options]
    ) -> Submitted:
        """A model has another rank now."""
        data: dict[str, Value] = {
            "model": model,
            "model_name": model_name,
            "rank": rank,
            "previous_rank": previous_rank,
        }
        return await self.queue_email("rank-update", to, data, **options)

    async def send_reward_delivery(
        self, to: str | int, *, reward: int, reward_name: str, **options: Unpack[Options]
    ) -> Submitted:
        """Somebody has earned a reward."""
        return await self.queue_email("reward-delivery", to, {"reward": reward, "reward_name": reward_name}, **options)

    async def send_referral_join(self, to: str | int, *, friend: str, **options: Unpack[Options]) -> Submitted:
        """A friend has accepted somebody's invitation."""
        return await self.queue_email("referral-join", to, {"friend": friend}, **options)

    async def send_referral_milestone(self, to: str | int, *, referrals: int, **options: Unpack[Options]) -> Submitted:
        """So many people have joined by somebody's invitations."""
        return await self.queue_email("referral-milestone", to, {"referrals": referrals}, **options)
