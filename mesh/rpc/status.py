"""Errors over the wire: exception to (code, reason, message, retryable, details) and back. PURE.

Codes of the RPC layer itself are below; a MeshError of a servicer travels as its class name in kebab-case
(`RecordRejected` → `record-rejected`), a RemoteFailure with the code it has, anything else as `internal` without text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from mesh.errors import (
    ChainUnavailable,
    MeshError,
    NetworkError,
    NotAuthorized,
    RemoteFailure,
    RequestTimeout,
    RpcError,
    StoreFull,
)
from mesh.rpc.frame import MAX_CODE_CHARS, MAX_DETAILS_BYTES, MAX_MESSAGE_BYTES, printable

NOT_AUTHORIZED: Final = "not-authorized"
UNKNOWN_METHOD: Final = "unknown-method"
BAD_REQUEST: Final = "bad-request"
TOO_LARGE: Final = "too-large"
BUSY: Final = "busy"
TIMEOUT: Final = "timeout"
INTERNAL: Final = "internal"

_RETRYABLE: Final = (NetworkError, ChainUnavailable, StoreFull)


class Status(NamedTuple):
    """How a call ended, as it travels; an empty code is success."""

    code: str
    reason: str = ""
    message: str = ""
    retryable: bool = False
    details: str = ""
    """JSON text of a map, or nothing."""


OK: Final = Status("")


def status_of(error: MeshError) -> Status:
    """What the caller is told about a servicer's error."""
    message = printable(str(error), MAX_MESSAGE_BYTES)
    match error:
        case NotAuthorized():
            return Status(NOT_AUTHORIZED, _word(error.reason), message)
        case RemoteFailure():
            return Status(
                _word(error.code) or INTERNAL,
                "",
                printable(error.message, MAX_MESSAGE_BYTES),
                error.retryable,
                _packed(error.details),
            )
        case RequestTimeout():
            return Status(TIMEOUT, "", message, True)
    code = re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()[:MAX_CODE_CHARS]
    return Status(code, _word(str(getattr(error, "reason", ""))), message, isinstance(error, _RETRYABLE))


def error_of(status: Status) -> RpcError | RequestTimeout:
    """What the caller raises."""
    message = printable(status.message, MAX_MESSAGE_BYTES)
    if status.code == NOT_AUTHORIZED:
        return NotAuthorized(_word(status.reason), message)
    if status.code == TIMEOUT:
        return RequestTimeout(message or "the peer ran out of time")
    return RemoteFailure(
        _word(status.code) or INTERNAL, message, retryable=status.retryable, details=_unpacked(status.details)
    )


def _packed(details: Mapping[str, object]) -> str:
    """As they travel; left out when they are no JSON or too long, since an error must always arrive."""
    if not details:
        return ""
    try:
        text = json.dumps(details)
    except (TypeError, ValueError, RecursionError):
        return ""
    return text if len(text) <= MAX_DETAILS_BYTES else ""


def _unpacked(text: str) -> dict[str, object]:
    """What a stranger says beside its error; nothing when it is no JSON object."""
    if not text:
        return {}
    try:
        details = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return details if isinstance(details, dict) else {}


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9_-]", "", text.lower())[:MAX_CODE_CHARS]
