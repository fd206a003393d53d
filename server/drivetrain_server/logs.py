"""The server's log on standard error: lines for people, or one JSON object a line for programs."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

import orjson

FIELDS = ("request_id", "method", "path", "route", "status", "duration_s", "key", "trace_id")
"""What log calls may add by `extra`, in this order."""


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, then the fields that the call added."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record; anything that JSON cannot say is told as text."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: vars(record)[name] for name in FIELDS if name in vars(record)}
        if record.exc_info is not None:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a line comes, so that lines of the start come above its progress bars."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Standard error of this moment."""
        return sys.stderr


def set_up_logs(log_format: str) -> None:
    """Send the log of this process to standard error.

    Args:
        log_format: `text` or `json`.
    """
    handler = _StandardError()
    handler.setFormatter(
        JsonFormatter() if log_format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler])
