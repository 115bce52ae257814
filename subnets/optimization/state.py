"""What an optimization node keeps on disk: the champion it knows, and what it committed but has not revealed yet.

Without it a restart would lose the salts, and with them the claim and the votes of the epoch.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import LocalProtocolError, RecordRejected
from mesh.files import Durable, replace_file
from mesh.kad.validator import pack_value, unpack_value
from subnets.optimization.records import DEFAULT_CHAMPION, Champion, Claim, Vote

log = logging.getLogger(__name__)

MAX_STATE_BYTES: Final = 1024 * 1024


class PendingVote(BaseModel):
    """A committed vote."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    claim_id: bytes
    vote: Vote


class OptimizationState(BaseModel):
    """The file's content."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int = Field(default=1, ge=1, le=1)
    champion: Champion = DEFAULT_CHAMPION
    epoch: int = -1
    """The epoch that `claim` and `votes` belong to."""
    claim: Claim | None = None
    votes: list[PendingVote] = []


def load_state(path: Path) -> OptimizationState:
    """The saved state, or a fresh one when there is none; a damaged file is set aside with a warning, since all that
    is lost with it is one epoch's work."""
    try:
        data = path.read_bytes()[: MAX_STATE_BYTES + 1]
        return unpack_value(OptimizationState, data)
    except FileNotFoundError:
        return OptimizationState()
    except RecordRejected as error:
        log.warning("%s is damaged and set aside: %s", path, error)
        os.replace(path, path.with_suffix(".damaged"))
        return OptimizationState()


def save_state(path: Path, state: OptimizationState) -> None:
    """Write the file anew, atomically and to the disk. Raises LocalProtocolError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, pack_value(state), durable=Durable.YES)  # 0600: it holds salts that are not revealed yet
    except OSError as error:
        raise LocalProtocolError(f"cannot write {path}: {error.strerror}") from error
