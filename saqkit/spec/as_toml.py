"""A description as the TOML file that reads back equal: what is at its default is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from saqkit.spec.base import Part

WIDTH = 100
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def as_toml(part: Part, digits: int | None = None) -> str:
    """The text of a file that `from_toml` of the same kind of part reads as equal to `part`.

    With `digits`, numbers with a fraction are rounded to so many significant ones, for people to read.
    """
    return "\n".join(_tables(_told(part, part.to_dict(), digits), ())).strip() + "\n"


def _told(value: Any, data: Any, digits: int | None) -> Any:
    """`data`, the plain form of `value`, without fields at their defaults; a `kind` tells tables apart, and stays."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        told = {name: (getattr(value, name), fields[name].get_default(call_default_factory=True)) for name in data}
        return {
            name: _told(inner, data[name], digits)
            for name, (inner, usual) in told.items()
            if name == "kind" or inner != usual
        }
    if isinstance(value, Mapping):
        return {name: _told(inner, data[name], digits) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_told(inner, plain, digits) for inner, plain in zip(value, data, strict=True)]
    return float(f"{data:.{digits}g}") if digits and isinstance(data, float) else data


def _tables(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """The lines of a table at `path`; tables that are deeper than `[queues.mail]` are written inline."""
    deeper = {} if len(path) == 2 else {name: value for name, value in table.items() if isinstance(value, Mapping)}
    own = {name: value for name, value in table.items() if name not in deeper}
    if path and (own or not deeper):
        yield f"\n[{'.'.join(map(_key, path))}]"
    for name, value in own.items():
        yield f"{_key(name)} = {_value(value, len(name) + 3)}"
    for name, value in deeper.items():
        yield from _tables(value, (*path, name))


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: Any, indent: int) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_key(name)} = {_value(inner, WIDTH)}" for name, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        items = [_value(inner, WIDTH) for inner in value]
        if indent + sum(map(len, items)) + 2 * len(items) <= WIDTH or len(items) < 2:
            return f"[{', '.join(items)}]"
        return "[" + "".join(f"\n{line}" for line in _lines(items)) + "\n]"
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return '"none"'
    return _text(value) if isinstance(value, str) else repr(value)


def _lines(items: list[str]) -> Iterator[str]:
    line = " "
    for item in items:
        if len(line) + len(item) + 2 > WIDTH and line.strip():
            yield line
            line = " "
        line += f" {item},"
    yield line


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
