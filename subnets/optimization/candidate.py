"""What is searched: a point of the space of training configurations. PURE, and without torch.

A candidate is written in integers, so that it has one encoding, one digest and no rounding between machines. The
optimizer sees the same point in the unit cube.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.kad.validator import pack_value


class Candidate(BaseModel):
    """A training configuration of the classifier; out-of-range fields are refused by the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    lr_micro: Annotated[int, Field(ge=30, le=100_000, description="Adam's learning rate x 1e6")]
    hidden: Annotated[int, Field(ge=8, le=128, description="width of the hidden layer")]
    batch: Annotated[int, Field(ge=8, le=128, description="samples per step")]
    beta1_permille: Annotated[int, Field(ge=0, le=990, description="Adam's first beta x 1000")]
    decay_micro: Annotated[int, Field(ge=0, le=100_000, description="decoupled weight decay x 1e6")]
    smoothing_permille: Annotated[int, Field(ge=0, le=200, description="label smoothing x 1000")]
    init_permille: Annotated[int, Field(ge=250, le=2000, description="factor on He's initial scale x 1000")]

    def digest(self) -> bytes:
        """sha256 of its canonical bytes: its name."""
        return hashlib.sha256(pack_value(self)).digest()


DEFAULT: Final = Candidate(
    lr_micro=1000,
    hidden=64,
    batch=32,
    beta1_permille=900,
    decay_micro=10_000,
    smoothing_permille=0,
    init_permille=1000,
)
"""The documented starting point: PyTorch's own defaults of AdamW (lr 1e-3, betas .9/.999, decay 0.01), He's
initialization, 64 hidden units and batches of 32. What a user would try first."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One axis: a field, its range, and whether equal steps are equal factors."""

    name: str
    low: int
    high: int
    logarithmic: bool


DIMENSIONS: Final = (
    Dimension("lr_micro", 30, 100_000, True),
    Dimension("hidden", 8, 128, True),
    Dimension("batch", 8, 128, True),
    Dimension("beta1_permille", 0, 990, False),
    Dimension("decay_micro", 0, 100_000, False),
    Dimension("smoothing_permille", 0, 200, False),
    Dimension("init_permille", 250, 2000, True),
)


def from_unit(point: Sequence[float]) -> Candidate:
    """The candidate at a point of the unit cube; coordinates outside are clipped."""
    fields: dict[str, int] = {}
    for axis, coordinate in zip(DIMENSIONS, point, strict=True):
        t = min(max(float(coordinate), 0.0), 1.0)
        if axis.logarithmic:
            value = axis.low * (axis.high / axis.low) ** t
        else:
            value = axis.low + (axis.high - axis.low) * t
        fields[axis.name] = min(max(round(value), axis.low), axis.high)
    return Candidate(**fields)


def to_unit(candidate: Candidate) -> list[float]:
    """Where a candidate lies in the unit cube; `from_unit` gives it back up to rounding to integers."""
    point = []
    for axis in DIMENSIONS:
        value = getattr(candidate, axis.name)
        if axis.logarithmic:
            point.append(math.log(value / axis.low) / math.log(axis.high / axis.low))
        else:
            point.append((value - axis.low) / (axis.high - axis.low))
    return point
