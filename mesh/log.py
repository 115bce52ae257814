"""Logging for the programs: readable lines on a terminal, JSON lines in files. Libraries only call getLogger."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from pathlib import Path
from typing import Any

from mesh.trace import CURRENT

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "trace"}


class TraceFilter(logging.Filter):
    """Adds to each record which call it was written for: `trace` (short) and, within one, `traceparent`."""

    def filter(self, record: logging.LogRecord) -> bool:
        trace = CURRENT.get()
        record.trace = f" [{trace}]" if trace is not None else ""
        if trace is not None:
            record.traceparent = trace.traceparent
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update({k: v for k, v in record.__dict__.items() if k not in _STANDARD})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class TextFormatter(logging.Formatter):
    """One readable line. What peers and chain nodes wrote is in many messages: it ends no line and steers no terminal;
    a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _plain(record.message, "")
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return _plain(super().format(record), "\n\t")


def _plain(text: str, kept: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() or c in kept else "·" for c in text)


def configure(*, level: str = "INFO", json_lines: bool = False, file: Path | None = None) -> None:
    """Send mesh's and subnets' logs to stderr or a file; other libraries only from WARNING on."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = logging.FileHandler(file)
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if json_lines
        else TextFormatter("%(asctime)s %(levelname)-7s %(name)s:%(trace)s %(message)s", datefmt="%H:%M:%S")
    )
    handler.addFilter(TraceFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("mesh", "subnets"):
        logging.getLogger(name).setLevel(level.upper())
