"""One tree of errors: catch `SaqkitError` for all of them.

SaqkitError
├── DescriptionError     a topology, deployment, workload or override is wrong (file, key, value, bound)
├── UsageError           a command or call was given something that it cannot use
├── BrokerError          no broker: not found, not reachable, refuses, or its settings are unsafe
├── StoreError           the database is not reachable or refuses
├── RunError             a measured run could not be carried out or is not usable
├── ProfileError         a profile cannot be fitted, read or used
└── ProviderError        an email or message was not accepted by its provider
    ├── TemporaryFailure     worth another attempt (SMTP 4xx, timeouts)
    │   └── CircuitOpen          nothing was sent: the provider failed too often just now
    └── PermanentFailure     will never be accepted (SMTP 5xx)
"""

from __future__ import annotations


class SaqkitError(Exception):
    """Root of all errors that saqkit and sim raise on purpose; its text is one line fit for a terminal."""


class DescriptionError(SaqkitError):
    """A description is wrong.

    Attributes: `message`, `source` (file or name, empty if none), `key` (dotted path), `value` (what was given), `hint`
    (what would be right, empty if unknown).
    """

    def __init__(self, message: str, *, source: str = "", key: str = "", value: object = None, hint: str = "") -> None:
        self.message, self.source, self.key, self.value, self.hint = message, source, key, value, hint
        where = ": ".join(part for part in (source, key) if part)
        text = f"{where}: {message}" if where else message
        super().__init__(f"{text} ({hint})" if hint else text)

    def within(self, source: str) -> DescriptionError:
        """The same error, found in `source`."""
        return DescriptionError(self.message, source=source, key=self.key, value=self.value, hint=self.hint)


class UsageError(SaqkitError):
    """A command or call was given something that it cannot use."""


class BrokerError(SaqkitError):
    """No broker: not found, not reachable, refuses, or its settings are unsafe."""


class StoreError(SaqkitError):
    """The database is not reachable or refuses."""


class RunError(SaqkitError):
    """A measured run could not be carried out, or is not usable for what was asked."""


class ProfileError(SaqkitError):
    """A profile cannot be fitted, read or used."""


class ProviderError(SaqkitError):
    """A message was not accepted by its provider."""


class TemporaryFailure(ProviderError):
    """The provider may accept the message later (SMTP 4xx, a timeout, a closed connection)."""


class CircuitOpen(TemporaryFailure):
    """Nothing was sent: the provider has failed so often in a row that it is left alone for a while."""


class PermanentFailure(ProviderError):
    """The provider will never accept the message (SMTP 5xx, an impossible address)."""
