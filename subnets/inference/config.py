"""Limits of serving."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from subnets.inference.models import ARCHITECTURE


class BatchConfig(BaseModel):
    """How requests are put together for the worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_s: float = Field(default=0.003, ge=0, le=1, description="how long the first request waits for others")
    max_rows: int = Field(default=2048, ge=1, le=4096, description="rows given to the model at once")
    max_request_rows: int = Field(default=1024, ge=1, le=4096, description="rows of one request")
    max_waiting: int = Field(default=256, ge=1, description="requests that may wait; further ones are told to retry")
    timeout_s: float = Field(default=20.0, gt=0, description="longest run of one batch")


class InferenceConfig(BaseModel):
    """What an operator may set. All nodes of a subnet serve the same model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="the model's safetensors file")
    architecture: str = Field(default=ARCHITECTURE, max_length=32, description="its architecture, of the allow-list")
    width: int = Field(ge=1, le=4096, description="width of its hidden layer")
    record_ttl_s: float = Field(default=3600.0, gt=0, le=86_400, description="life of evidence records")
    batch: BatchConfig = BatchConfig()
