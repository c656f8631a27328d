"""Amounts of money: whole minor units (cents) of a known currency, never floats."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean

DIGITS = {"AUD": 2, "BRL": 2, "CAD": 2, "CHF": 2, "CNY": 2, "DKK": 2, "EUR": 2, "GBP": 2, "HUF": 2, "INR": 2, "JPY": 0,
          "KES": 2, "KRW": 0, "KWD": 3, "MXN": 2, "NGN": 2, "NOK": 2, "PKR": 2, "PLN": 2, "SEK": 2, "TRY": 2, "USD": 2,
          "ZAR": 2}  # fmt: skip
"""Currencies by their ISO 4217 code, and how many digits their minor unit has."""
MOST_MINOR = 10**12


@dataclass(frozen=True, slots=True)
class Money:
    """`minor` units of the smallest kind of `currency`: 1250 of EUR are 12.50 EUR.

    `UsageError` unless there are 1 to 10^12 of them, and the currency is known.
    """

    minor: int
    currency: str

    def __post_init__(self) -> None:
        if self.currency not in DIGITS:
            raise UsageError(f'there is no currency "{self.currency}" ({did_you_mean(self.currency, DIGITS)})')
        if not isinstance(self.minor, int) or isinstance(self.minor, bool):
            raise UsageError(f"{self.minor!r} is no amount of minor units of {self.currency} (a whole number)")
        if not 1 <= self.minor <= MOST_MINOR:
            unit = f"1 to {MOST_MINOR:,} minor units of {self.currency}"
            raise UsageError(f"an amount of {self.minor:,} cannot be charged ({unit})")

    @classmethod
    def of(cls, amount: str, currency: str) -> Self:
        """The money that a person types: `12.50`, `EUR`."""
        digits = DIGITS.get(currency)
        if digits is None:
            return cls(1, currency)  # says which currency is meant
        whole, point, fraction = amount.strip().partition(".")
        example = f"such as 12{'.' + '50000'[:digits] if digits else ''}"
        if not re.fullmatch(r"[+-]?[0-9]+", whole) or (point and not re.fullmatch(r"[0-9]+", fraction)):
            raise UsageError(f'"{amount}" is no amount of {currency} ({example})')
        if len(fraction.rstrip("0")) > digits:
            raise UsageError(f'"{amount}" has more digits than {currency}, which has {digits} ({example})')
        return cls(int(whole + fraction[:digits].ljust(digits, "0")), currency)

    def __str__(self) -> str:
        digits = DIGITS[self.currency]
        text = f"{self.minor:0{digits + 1}d}"
        return f"{text[:-digits]}.{text[-digits:]} {self.currency}" if digits else f"{text} {self.currency}"
