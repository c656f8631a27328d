"""Log lines: for people or as JSON, each with the ids of the job during which it was written.

The kit logs through `logging`, as the logger `saqkit`. `arrange` says how the lines of this process look, `bound` gives
those that are written within it their ids: event, job, attempt, queue, tenant. structlog writes the lines; it is loaded
with the first one, because most worker processes never have any to write.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean

__all__ = ["Lines", "arrange", "bound", "chosen_style", "dress", "said"]

STYLES = ("console", "json")

_ids: ContextVar[Mapping[str, Any]] = ContextVar("saqkit_ids", default=MappingProxyType({}))


@contextmanager
def bound(**ids: Any) -> Iterator[None]:
    """Give every line that is written within, by this task and those it starts, these ids, empty ones left out."""
    token = _ids.set({**_ids.get(), **{name: value for name, value in ids.items() if value not in ("", None)}})
    try:
        yield
    finally:
        _ids.reset(token)


def chosen_style(environ: Mapping[str, str] = os.environ) -> str:
    """What `SAQKIT_LOG` asks for, `console` or `json`; console if it is not set."""
    style = environ.get("SAQKIT_LOG") or STYLES[0]
    if style not in STYLES:
        raise UsageError(f'SAQKIT_LOG: there is no style "{style}" ({did_you_mean(style, STYLES)})')
    return style


def arrange(level: int | str, worker: str = "") -> None:
    """Write what is logged to standard error, from `level` on; `worker` names this process in each line.

    DEBUG is for the lines of the kit alone; what it stands on then says INFO and more. Where the root logger has
    handlers already nothing is changed.
    """
    number = logging.getLevelNamesMapping()[level] if isinstance(level, str) else level
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(chosen_style(), worker))
    logging.basicConfig(level=max(number, logging.INFO), handlers=[handler])
    if number < logging.INFO:
        logging.getLogger("saqkit").setLevel(number)


def dress(worker: str = "") -> None:
    """Let the handlers that the root logger has write such lines, if `SAQKIT_LOG` is set; for SAQ's own command."""
    if os.environ.get("SAQKIT_LOG"):
        for handler in logging.getLogger().handlers:
            handler.setFormatter(Lines(chosen_style(), worker))


def said(text: str, **facts: Any) -> str:
    """What a command has to say beside its log: `text` as it is, or with `facts` as a line of JSON where lines are."""
    if chosen_style() == "console":
        return text
    record = {"name": "saqkit", "levelno": logging.INFO, "levelname": "INFO", "msg": text, **facts}
    return Lines("json").format(logging.makeLogRecord(record))


class Lines(logging.Formatter):
    """Makes a line of a record: time (UTC), level, message, logger, worker, ids, what was given as `extra`, stack."""

    def __init__(self, style: str, worker: str = "") -> None:
        super().__init__()
        self._kind, self._worker = style, worker
        self._formatter: logging.Formatter | None = None

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines where it is for people and has a stack."""
        if self._formatter is None:
            self._formatter = _formatter(self._kind, self._worker)
        return self._formatter.format(record)


def _formatter(style: str, worker: str) -> logging.Formatter:
    import structlog
    from structlog.typing import EventDict

    def message_and_ids(_logger: Any, _method: str, line: EventDict) -> EventDict:
        line["message"] = line.pop("event")  # `event` is the id of an event here
        if worker:
            line["worker"] = worker
        line.update(_ids.get())
        return line

    def stack(_logger: Any, _method: str, line: EventDict) -> EventDict:
        record: logging.LogRecord = line["_record"]
        if exception := line.pop("exc_info", None):
            line["exception"] = record.exc_text or logging.Formatter().formatException(exception)
        elif record.exc_text:  # a `Curtain` has hidden what nobody may see
            line["exception"] = record.exc_text
        return line

    renderer: Any = structlog.processors.JSONRenderer()
    if style == "console":
        renderer = structlog.dev.ConsoleRenderer(
            0, colors=sys.stderr.isatty(), sort_keys=False, event_key="message",
            exception_formatter=structlog.dev.plain_traceback,
        )  # fmt: skip
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper("iso", utc=True),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            message_and_ids,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ExtraAdder(),
            stack,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
