"""The subscribers of `voting`: each of its six topics becomes emails."""

from __future__ import annotations

from saqkit.app.subscribers.subscriber import Tells

__all__ = ["SUBSCRIBERS"]

SUBSCRIBERS = (
    Tells("on-vote-created", "vote-confirmation"),
    Tells("on-progress-milestone", "progress-update", "everybody", ("subscriber",)),
    Tells("on-rank-changed", "rank-update", "everybody", ("supporter",)),
    Tells("on-reward-earned", "reward-delivery"),
    Tells("on-user-registered", "referral-join"),
    Tells("on-referral-milestone", "referral-milestone"),
)
