"""The envelope of an event: what it is, whose it is, what caused it."""

from __future__ import annotations

import json
import time
from secrets import token_hex
from typing import Annotated

from pydantic import AfterValidator, Field, JsonValue, NonNegativeFloat, field_validator, model_validator
from pydantic_core import PydanticCustomError

from saqkit.spec.base import Part
from saqkit.spec.topology import Name

MAX_DATA_BYTES = 32_768
"""An event's data may not be longer as JSON: each delivery carries them, and a job's body has 64 KB by default."""


def _word(text: str) -> str:
    if len(text) > 64 or "|" in text or " " in text or not text.isprintable():
        raise ValueError("should be a word of at most 64 characters, without blanks and |")
    return text


def _line(text: str) -> str:
    if len(text) > 64 or not text.isprintable():
        raise ValueError("should be one line of at most 64 characters")
    return text


Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_line)]


class Event(Part):
    """Something that happened. Raises `DescriptionError` for what cannot be.

    `type` is its topic; `data` are JSON, at most 32 KB, ids rather than whole things. `tenant`, `institution` and
    `user` say whose it is, empty: nobody's. One tenant's events of the same `id` are one event. `time` is when it
    happened, epoch seconds of the publisher's clock. `correlation_id` is the `id` of the event, or the name of the
    request, that began it all (default: its own id); `causation_id` is that of the event whose handler published it.
    """

    type: Name
    data: dict[str, JsonValue] = Field(default={})
    tenant: Word = ""
    institution: Line = ""
    user: int | Word = ""
    id: Word = Field(default_factory=lambda: token_hex(16), min_length=1)
    time: NonNegativeFloat = Field(default_factory=time.time)
    correlation_id: Word = ""
    causation_id: Word = ""

    @field_validator("data")
    @classmethod
    def _short_json(cls, data: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            size = len(json.dumps(data, separators=(",", ":")))
        except (ValueError, RecursionError) as error:
            raise PydanticCustomError("json", "cannot be written as JSON: {error}", {"error": str(error)}) from error
        if size > MAX_DATA_BYTES:
            raise ValueError(f"are {size:,} bytes of JSON, at most {MAX_DATA_BYTES:,} fit (pass ids, not the things)")
        return data

    @model_validator(mode="after")
    def _begins_its_own(self) -> Event:
        if not self.correlation_id:
            self.__dict__["correlation_id"] = self.id
        return self

    def to_json(self) -> str:
        """The envelope as it is stored and shown to live views."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Event:
        """The event of a stored envelope."""
        return cls.parse(json.loads(text), "stored event")
