"""What every part of a description shares: strict fields, clear errors, and where a field acts."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from saqkit.errors import DescriptionError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Explaining(ModelMetaclass):
    """Lets `Burst(users=0)` in Python fail with the same error as `users = 0` in a file."""

    if not TYPE_CHECKING:

        def __call__(cls, *args, **fields):
            try:
                return super().__call__(*args, **fields)
            except ValidationError as error:
                raise _explain(cls, error, fields, "") from error


class Part(BaseModel, metaclass=_Explaining):
    """A frozen, strictly checked part of a description; unknown keys are errors.

    `"none"` stands for no value wherever a field may have none, because TOML has no null.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _none_and_booleans(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        kept = dict(data)
        for name in kept.keys() & cls.model_fields.keys():
            allowed = set(_members(cls.model_fields[name].annotation))
            if isinstance(kept[name], str) and kept[name] == "none" and type(None) in allowed:
                kept[name] = None
            if isinstance(kept[name], bool) and not allowed & {bool, Any}:
                raise PydanticCustomError("boolean", "should not be true or false", {"field": name})
        return kept

    @classmethod
    def parse(cls, data: Mapping[str, Any], source: str = "") -> Self:
        """Validate `data` (as read from TOML or JSON); raises `DescriptionError` for the first thing that is wrong."""
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise _explain(cls, error, data, source) from error
        except DescriptionError as error:  # raised by a check of the whole, which does not know where the data is from
            if error.source:
                raise
            raise error.within(source) from error

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read and validate a TOML file; raises `DescriptionError` naming the file, the key and the value."""
        try:
            return cls.parse(tomllib.loads(Path(path).read_text(encoding="utf-8")), str(path))
        except OSError as error:
            raise DescriptionError(f"cannot be read: {error.strerror}", source=str(path)) from error
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise DescriptionError(f"is not UTF-8 text: byte 0x{error.object[error.start]:02x} in line {line}",
                                   source=str(path), hint="save the file as UTF-8") from error  # fmt: skip
        except (ValueError, RecursionError) as error:  # also of numbers and nests that no reader can hold
            raise DescriptionError(f"is not valid TOML: {error}", source=str(path)) from error

    def to_dict(self) -> dict[str, Any]:
        """The description as plain JSON types; `parse` reads it back equal."""
        return self.model_dump(mode="json")


def acts_in_real(reason: str) -> dict[str, Any]:
    """Marks a field that cannot act in the model, with the reason (shown by `saqkit show` and in the schema)."""
    return {"acts_in": "real", "reason": reason}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean "x"?` for the nearest of `known`, else the list of what is known."""
    names = {name.lower(): name for name in sorted(known)}
    if near := difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.5):
        return f'did you mean "{names[near[0]]}"?'
    shown = list(names.values())
    return f"known: {', '.join(shown[:12]) or 'none'}" + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def keys_at(model: type[BaseModel], data: Any, path: Sequence[str | int]) -> list[str]:
    """The keys that `model` allows in the table at `path` of `data`, whose `kind` chooses between kinds of tables."""
    return [name for table in _tables_at(model, data, path) for name in table.model_fields]


def _explain(model: type[BaseModel], error: ValidationError, data: Any, source: str) -> DescriptionError:
    # A misspelt key is named first, because the key that is then missing follows from it.
    errors = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    found = [(_path(data, item["loc"], item["type"] == "missing"), item) for item in errors]
    path, wrong = found[0]
    if wrong["type"] != "extra_forbidden":
        # Every member of a union says why it refuses: the one that got furthest is the one that was meant.
        path, wrong = max((item for item in found if item[0][: len(path)] == path), key=lambda item: len(item[0]))
    value, message, hint, context = wrong["input"], str(wrong["msg"]), "", wrong.get("ctx", {})
    choices = re.findall(r"'([^']*)'", str(context.get("expected_tags", context.get("expected"))))
    shown = "" if isinstance(value, Mapping | BaseModel) else f" (given: {_short(value)})"
    match wrong["type"]:
        case "extra_forbidden":
            message, shown, hint = f'unknown key "{path[-1]}"', "", _meant(model, data, path)
        case "missing":
            message, shown = "is missing", ""
        case "union_tag_not_found":
            kinds = [table.model_fields["kind"].default for table in _tables_at(model, {}, path)]
            path, message, hint = [*path, "kind"], "is missing", f"one of {', '.join(kinds)}"
        case "union_tag_invalid":
            path, value = [*path, "kind"], context["tag"]
            message, shown, hint = f'there is no kind "{value}"', "", did_you_mean(str(value), choices)
        case "boolean":
            path, value = [*path, context["field"]], value[context["field"]]
            shown = f" (given: {str(value).lower()})"
        case "literal_error":
            message = f"should be {' or '.join(choices)}"
            if isinstance(value, str):
                message, shown, hint = f'there is no {path[-1]} "{value}"', "", did_you_mean(value, choices)
        case "model_type" | "model_attributes_type" | "dict_type":
            message, shown = "should be a table", f" (given: {_short(value)})"
        case "tuple_type" | "list_type":
            message, shown = "should be a list", f" (given: {_short(value)})"
        case "string_pattern_mismatch":
            marks = "at most 63 letters, digits or _ . : -" if ":" in context["pattern"] else "letters, digits or _"
            message = f"is no name: a letter, then {marks}"
        case "value_error" | "assertion_error":
            message = message.partition(", ")[2]
            shown = shown if repr(value) not in message and str(value) not in message else ""
        case _:
            message = re.sub(r"^\w+ should", "should", message).replace(" after validation", "")
    key = ".".join(str(part) if str(part).isprintable() else ascii(part) for part in path)
    return DescriptionError(" ".join(message.split()) + shown, source=source, key=key, value=value, hint=hint)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _path(data: Any, location: Sequence[str | int], missing: bool) -> list[str | int]:
    """The keys of `location` that lead through `data`: without pydantic's marks for members of a union."""
    path: list[str | int] = []
    for n, part in enumerate(location):
        below = data if isinstance(data, Mapping) else dict(enumerate(data)) if isinstance(data, list | tuple) else {}
        if part in below:
            path, data = [*path, part], below[part]
        elif missing and n == len(location) - 1:
            path.append(part)
    return path


def _meant(model: type[BaseModel], data: Any, path: Sequence[str | int]) -> str:
    """What was probably meant by the unknown key at the end of `path`: it, one table below, or one like it here."""
    word, here = str(path[-1]), path[:-1]
    keys = keys_at(model, data, here)
    for name in keys:
        if word in keys_at(model, {}, [*here, name]):
            return f'did you mean "{name}.{word}"?'
    return did_you_mean(word, keys)


def _tables_at(model: type[BaseModel], data: Any, path: Sequence[str | int]) -> list[type[BaseModel]]:
    types: list[Any] = [model]
    for part in path:
        types = [inner for outer in types for inner in _under(outer, part)]
        try:
            data = data[part]
        except (LookupError, TypeError):
            data = {}
    tables = [item for item in types if isinstance(item, type) and issubclass(item, BaseModel)]
    kind = data.get("kind") if isinstance(data, Mapping) else None
    chosen = [table for table in tables if (field := table.model_fields.get("kind")) and field.default == kind]
    return chosen if len(tables) > 1 and chosen else tables


def _under(outer: Any, part: str | int) -> Iterator[Any]:
    """The types that may stand at key or index `part` of a value of type `outer`."""
    if isinstance(outer, type) and issubclass(outer, BaseModel):
        if part in outer.model_fields:
            yield from _members(outer.model_fields[str(part)].annotation)
    elif args := get_args(outer):  # of a list, a tuple or a table
        yield from _members(args[0] if args[-1] is Ellipsis else args[-1])


def _members(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows: the members of its union, or itself."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation
