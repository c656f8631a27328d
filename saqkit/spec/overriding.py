"""`--set KEY=VALUE`: any field of a description by its path."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, TypeVar

from saqkit.errors import DescriptionError
from saqkit.spec.base import Part, did_you_mean, keys_at

P = TypeVar("P", bound=Part)


def parse_assignment(text: str) -> tuple[str, Any]:
    """`queues.mail.rate_limit.limit=20` as (path, value); the value is read as TOML, or as plain text."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise DescriptionError(f'"{text}" is no override', value=text, hint="write KEY=VALUE, e.g. "
                               "queues.notifications.rate_limit=none")  # fmt: skip
    try:
        return key.strip(), tomllib.loads(f"value = {raw.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), raw.strip()


def override(part: P, assignments: Mapping[str, Any] | Iterable[tuple[str, Any]], source: str = "--set") -> P:
    """`part` with the fields at the given dotted paths replaced, validated as a whole.

    A path that does not exist is a `DescriptionError` with the nearest name. Names that hold dots are matched whole.
    A new `kind` drops what only the old kind had; a key below a field that is none makes its table.
    """
    data = part.to_dict()
    for path, value in dict(assignments).items():
        _replace(type(part), data, path, value, source)
    return type(part).parse(data, source)


def _replace(model: type[Part], data: dict[str, Any], path: str, value: Any, source: str) -> None:
    place: Any = data
    keys: list[str | int] = []
    rest = path
    while True:
        known = list(map(str, range(len(place)))) if isinstance(place, list) else [*place, *keys_at(model, data, keys)]
        name = max((name for name in known if rest == name or rest.startswith(f"{name}.")), key=len, default=None)
        if name is None:
            raise DescriptionError(f'there is no "{rest.split(".")[0]}"', source=source, key=path, value=value,
                                   hint=did_you_mean(rest.split(".")[0], known))  # fmt: skip
        key = int(name) if isinstance(place, list) else name
        if name == rest:
            place[key] = deepcopy(value)  # a later override may reach into it
            if name == "kind":
                for unknown in set(place) - set(keys_at(model, data, keys)):
                    del place[unknown]
            return
        keys.append(key)
        if isinstance(place, dict) and place.get(name) is None:
            place[key] = {}
            if not keys_at(model, data, keys):  # a table with free names, such as slots per queue
                place[key] = {rest[len(name) + 1 :]: value}
                return
        place, rest = place[key], rest[len(name) + 1 :]
        if not isinstance(place, dict | list):
            raise DescriptionError(f'"{name}" is a single value and has no "{rest}"',
                                   source=source, key=path, value=value)  # fmt: skip
