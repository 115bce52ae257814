"""Settings of an optimization node."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from subnets.inference.config import BatchConfig


class OptimizationConfig(BaseModel):
    """What an operator may set. What decides scores is not here: it is fixed by the score id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Path | None = Field(
        default=None,
        description="directory with pool.safetensors; made from scikit-learn's digits by data_seed when not given",
    )
    data_seed: int = Field(default=7, ge=0, le=2**31, description="which split of the digits; all nodes the same")
    confirm_splits: int = Field(default=3, ge=1, le=16, description="splits averaged before a candidate is claimed")
    rest: float = Field(
        default=0.5, ge=0, le=100, description="pause between explorations, in multiples of the last one's time"
    )
    record_ttl_s: float = Field(default=3600.0, gt=0, le=86_400, description="life of evidence records")
    migrant_ttl_s: float = Field(default=300.0, gt=0, le=3600, description="life of a champion's invitation")
    max_candidates: int = Field(default=64, ge=8, le=4096, description="own confirmed candidates remembered")
    batch: BatchConfig = BatchConfig()
