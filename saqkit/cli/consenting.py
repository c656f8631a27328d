"""What cannot be taken back is done with `--yes` only; `--dry-run` counts it; without either a command refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from saqkit.cli import options
from saqkit.cli.output import number
from saqkit.errors import UsageError


@dataclass(frozen=True)
class Consent:
    """What somebody who gave a command agreed to: that it is done (`yes`), or counted (`dry_run`); never both."""

    yes: bool
    dry_run: bool

    def require(self, found: int, thing: str, what: str) -> None:
        """Refuse, with how many it would be, if neither was given; until then the command may only have counted."""
        if not (self.yes or self.dry_run):
            things = thing if found == 1 else f"{thing}s"
            raise UsageError(f"{number(found)} {things} would be {what}, and nothing is done without a yes "
                             "(add --yes to do it, or --dry-run to only count)")  # fmt: skip


def asks_consent(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options `--dry-run` and `--yes`, as its argument `consent`."""

    @wraps(function)
    def command(*args: Any, yes: bool, dry_run: bool, **rest: Any) -> None:
        if yes and dry_run:
            raise UsageError("give either --yes or --dry-run")
        function(*args, consent=Consent(yes, dry_run), **rest)

    return options.chain(
        click.option("--dry-run", is_flag=True, help="Only count what it would be."),
        click.option("--yes", is_flag=True, help="Do it."),
    )(command)
