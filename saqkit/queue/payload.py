"""Fields of jobs that nobody but the worker may read: sealed on their way, and shown as *** wherever jobs are shown.

A sealed field stands in the stored job as `{"saqkit:sealed": [key id, base64 of nonce and AES-GCM ciphertext]}`. The
job's key, its function and the field's name are authenticated with it, so that it opens nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

from saq.job import Job

from saqkit.errors import UsageError
from saqkit.queue.job import compact

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VARIABLE = "SAQKIT_PAYLOAD_KEYS"
HIDDEN = "***"
MARK = "saqkit:sealed"
IN_BODY = f'"{MARK}"'.encode()
_READ_BY_THE_KIT = ("event", "users")
_SECONDS_OF_THE_KIT = ("keep_key_s", "retry_policy")
"""What a meta has of the kit's own numbers: they tell nobody anything, even if a code has the same digits."""
_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_PERCENT = re.compile(r"%[0-9A-F]{2}")
_HOW = f"{VARIABLE}=ID:KEY,…: a KEY is the base64 of 32 bytes"


class PayloadKeys:
    """The keys that fields are sealed with: the first seals, all of them open.

    So a key is replaced by putting a new one in front everywhere, and taking the old one away when no job or dead
    letter has it any more.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise UsageError(f"no payload keys ({_HOW})")
        for name, key in keys.items():
            if not _KEY_ID.fullmatch(name):
                raise UsageError(f'payload key "{name}": no id (use letters, digits, . _ - up to 32)')
            if len(key) != 32:
                raise UsageError(f'payload key "{name}": has {len(key)} bytes (give 32)')
        self._keys = dict(keys)
        self.newest = next(iter(keys))

    @classmethod
    def parse(cls, text: str) -> PayloadKeys:
        """The keys that a text as `k2:BASE64,k1:BASE64` names. No error shows anything of a key."""
        keys: dict[str, bytes] = {}
        for number, part in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
            name, colon, key = part.partition(":")
            if not colon or not _KEY_ID.fullmatch(name):
                raise UsageError(f"payload keys: number {number} has no id ({_HOW})")
            if name in keys:
                raise UsageError(f'payload keys: there are two "{name}" (give each its own id)')
            try:
                keys[name] = base64.b64decode(key, validate=True)
            except (ValueError, binascii.Error):
                raise UsageError(f'payload key "{name}": is not base64 ({_HOW})') from None
        return cls(keys)

    @classmethod
    def from_environment(cls) -> PayloadKeys:
        """The keys of `SAQKIT_PAYLOAD_KEYS`."""
        return cls.parse(os.environ.get(VARIABLE, ""))

    def __repr__(self) -> str:
        return f"PayloadKeys({', '.join(self._keys)})"

    def seal(self, text: str, about: bytes) -> dict[str, list[str]]:
        """The envelope of a text."""
        nonce = os.urandom(12)
        sealed = nonce + self._ciphers[self.newest].encrypt(nonce, text.encode(), about)
        return {MARK: [self.newest, base64.b64encode(sealed).decode()]}

    def open(self, envelope: Mapping[str, list[str]], about: bytes) -> str:
        """The text in an envelope. Raises `UsageError` where that needs another key, or it was changed or moved."""
        from cryptography.exceptions import InvalidTag

        try:
            name, text = envelope[MARK]
            sealed = base64.b64decode(text, validate=True)
        except (ValueError, TypeError):
            raise UsageError("is no envelope (it was changed)") from None
        if name not in self._keys:
            raise UsageError(f'is sealed with key "{name}", which is not here ({", ".join(self._keys)} {_IS})')
        try:
            return self._ciphers[name].decrypt(sealed[:12], sealed[12:], about).decode()
        except (InvalidTag, ValueError):
            raise UsageError(f'does not open with key "{name}" (another key of that id, or it was changed)') from None

    @cached_property
    def _ciphers(self) -> dict[str, AESGCM]:
        return {name: _cipher(key) for name, key in self._keys.items()}


_IS = f"of {VARIABLE}, or of the `keys` that were passed"


class Payload:
    """Which fields of which functions are sealed, and which are only hidden where jobs are shown.

    `encrypt` and `redact`: names of arguments by function; `"*"` stands for every function. `keys`: default those of
    the environment. Whatever is sealed is hidden too. A field is one argument as a whole, whatever is in it.
    """

    def __init__(
        self,
        encrypt: Mapping[str, Iterable[str]] | None = None,
        redact: Mapping[str, Iterable[str]] | None = None,
        keys: PayloadKeys | None = None,
    ) -> None:
        self._sealed, self._hidden = _fields("encrypt", encrypt), _fields("redact", redact)
        for function, fields in (*self._sealed.items(), *self._hidden.items()):
            if taken := fields.intersection(_READ_BY_THE_KIT):
                raise UsageError(f"payload of {function}: {min(taken)} is read by the kit itself (pass ids in it)")
        if self._sealed:
            _cipher(bytes(32))  # told now, not at the first job
        self.keys = keys if keys is not None or not self._sealed else PayloadKeys.from_environment()

    def sealed(self, function: str) -> set[str]:
        """The fields of a function that are sealed."""
        return self._sealed.get(function, set()) | self._sealed.get("*", set())

    def hidden(self, function: str) -> set[str]:
        """The fields of a function that are not shown."""
        return self.sealed(function) | self._hidden.get(function, set()) | self._hidden.get("*", set())

    def close(self, key: str, function: str, kwargs: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
        """A job's arguments as they are stored. `known`: pairs of text and envelope, by field, to be used again.

        Raises `UsageError` for a value that was copied from where it is hidden, `TypeError` for one that is not JSON.
        """
        closed = dict(kwargs)
        for name in (self.sealed(function) | known.keys()) & kwargs.keys():
            value = kwargs[name]
            if is_sealed(value):
                continue
            if value == HIDDEN:
                raise UsageError(f"job {key} ({function}): its {name} is {HIDDEN}, as shown (give the value itself)")
            text = compact(value)
            if name in known and known[name][0] == text:
                closed[name] = known[name][1]
            else:
                assert self.keys is not None
                closed[name] = self.keys.seal(text, _about(key, function, name))
        return closed

    def open(self, key: str, function: str, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """A job's arguments for its worker, and of each that was sealed the pair of text and envelope.

        Raises `UsageError` where one does not open.
        """
        opened, pairs = dict(kwargs), {}
        for name, value in kwargs.items():
            if is_sealed(value):
                if self.keys is None:
                    raise UsageError(f"its {name} is sealed, and there is no key here ({_HOW})")
                try:
                    text = self.keys.open(value, _about(key, function, name))
                except UsageError as error:
                    raise UsageError(f"its {name} {error}") from None
                opened[name], pairs[name] = json.loads(text), (text, value)
        return opened, pairs

    def refuse_elsewhere(self, job: Job) -> None:
        """Raise `UsageError` if a job says what is to be sealed in its key or its meta too."""
        fields = self.sealed(job.function) & (job.kwargs or {}).keys()
        meta: Any = job.meta
        if isinstance(meta, Mapping):
            own = {name: [*_texts(meta[name], (str,))] for name in _SECONDS_OF_THE_KIT if name in meta}
            meta = {**meta, **own}
        told = {"key": job.key, "meta": json.dumps(meta, default=repr, ensure_ascii=False)}
        for name in sorted(fields):
            for text in _texts((job.kwargs or {})[name]):
                for place, said in told.items():
                    if len(text) > 3 and text in said:
                        raise UsageError(f"a job of {job.function}: its {place} has what is to be sealed in {name} "
                                         "(name it by an id)")  # fmt: skip

    def secrets(self, job: Job, sealed_only: bool = False) -> list[str]:
        """The texts in a job's marked fields, as somebody may have written them, the longest first."""
        marked = self.sealed(job.function) if sealed_only else self.hidden(job.function)
        found: set[str] = set()
        for name in (marked | job.__dict__.get("sealed", {}).keys()) & (job.kwargs or {}).keys():
            for text in _texts((job.kwargs or {})[name]):
                found.add(text)
                if len(text) > 3:  # a short one in other words would be looked for within words too (see `hide`)
                    quoted = (json.dumps(text), json.dumps(text, ensure_ascii=False), repr(text))
                    found |= {*(form[1:-1] for form in quoted), *_in_links_and_html(text)}
        return sorted(filter(None, found - {HIDDEN}), key=lambda text: (-len(text), text))


def hide(text: str, secrets: Iterable[str]) -> str:
    """A text without secrets. One of up to three characters is hidden where it stands as a word of its own."""
    for secret in secrets:
        if len(secret) > 3:
            text = text.replace(secret, HIDDEN)
        else:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text


def hide_in(value: Any, secrets: Iterable[str]) -> Any:
    """A value with every text in it, and every number that is a secret, hidden."""
    if isinstance(value, str):
        return hide(value, secrets)
    if isinstance(value, Mapping):
        return {hide_in(name, secrets): hide_in(one, secrets) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [hide_in(one, secrets) for one in value]
    if isinstance(value, int | float) and not isinstance(value, bool) and str(value) in secrets:
        return HIDDEN
    return value


def hidden_end(job: Job, result: Any, error: str | None) -> tuple[Any, str | None]:
    """A job's result and error as they are stored: without what is sealed, the error without what is hidden either."""
    payload: Payload | None = getattr(job.queue, "payload", None)
    if payload is None:
        return result, error
    result = result if result is None else hide_in(result, payload.secrets(job, sealed_only=True))
    return result, error and hide(error, payload.secrets(job))


def is_sealed(value: Any) -> bool:
    """Whether an argument is an envelope."""
    return isinstance(value, dict) and value.keys() == {MARK}


def shown(kwargs: Mapping[str, Any], hidden: Iterable[str] = ()) -> dict[str, Any]:
    """Arguments as they may be shown; none where somebody has stored what is no table of them."""
    if not isinstance(kwargs, Mapping):
        return {}
    return {name: HIDDEN if name in hidden or is_sealed(value) else value for name, value in kwargs.items()}


class Curtain(logging.Filter):
    """Hides what the marked fields of a job say in log records that have the job among their arguments.

    It is put on SAQ's logger, whose worker logs jobs with the stack of what they raised.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        given = record.args.values() if isinstance(record.args, Mapping) else record.args or ()
        secrets = [text for job in given if isinstance(job, Job) for text in secrets_of(job)]
        if secrets and record.exc_info:
            record.exc_text = hide(logging.Formatter().formatException(record.exc_info), secrets)
            record.exc_info = None
        return True


def secrets_of(job: Job) -> list[str]:
    """The secrets of a job, by what its queue has been told to hide; none where that is nothing."""
    payload: Payload | None = getattr(job.queue, "payload", None)
    return payload.secrets(job) if payload is not None else []


def draw_curtain() -> None:
    """Put one `Curtain` on SAQ's logger."""
    logger = logging.getLogger("saq")
    if not any(isinstance(one, Curtain) for one in logger.filters):
        logger.addFilter(Curtain())


def _texts(value: Any, kinds: tuple[type, ...] = (str, int, float)) -> Iterator[str]:
    """Every text and number in a value."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one, kinds)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one, kinds)
    elif isinstance(value, kinds) and not isinstance(value, bool):
        yield str(value)


def _in_links_and_html(text: str) -> set[str]:
    """A text as it stands in an address, in a query, and in HTML, of which there are two ways to write quotes."""
    escaped = html.escape(text)
    other = escaped.replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    links = [quoted(text, safe="", errors="surrogatepass") for quoted in (quote, quote_plus)]
    return {escaped, other, *links, *(_PERCENT.sub(lambda found: found[0].lower(), link) for link in links)}


def _about(key: str, function: str, name: str) -> bytes:
    return json.dumps(["saqkit", key, function, name]).encode()


def _fields(what: str, given: Mapping[str, Iterable[str]] | None) -> dict[str, set[str]]:
    found = {}
    for function, names in (given or {}).items():
        if isinstance(names, str):
            raise UsageError(f'{what} {function}: "{names}" is a text (give a list of names: ["{names}"])')
        found[function] = set(names)
        if not found[function]:
            raise UsageError(f"{what} {function}: names no field (give a list of names)")
    return found


def _cipher(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise UsageError("sealing fields needs the package cryptography (pip install 'saqkit[payload]')") from error
    return AESGCM(key)
