"""Settings of an evaluation node."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class EvaluationConfig(BaseModel):
    """What an operator may set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Path | None = Field(default=None, description="directory with pool.safetensors; made by data_seed if absent")
    data_seed: int = Field(default=7, ge=0, le=2**31, description="which split of the digits; all nodes the same")
    record_ttl_s: float = Field(default=3600.0, gt=0, le=86_400, description="life of evidence records")
    max_queued: int = Field(default=64, ge=1, le=1024, description="models that wait for the next epoch")
    max_results: int = Field(default=1024, ge=1, le=65_536, description="findings remembered")
