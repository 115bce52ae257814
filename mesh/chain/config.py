"""How a chain is reached, and the bounds of it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from mesh.chain.local import TestChain


class ChainConfig(BaseModel):
    """How a chain is reached, and the bounds of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    urls: tuple[str, ...] = Field(default=("ws://127.0.0.1:9944",), min_length=1, max_length=16)
    """ws:// or wss://; tried in turn."""
    call_timeout_s: float = Field(default=15.0, gt=0, le=600)
    """One question to the chain, waiting for a connection included."""
    submit_timeout_s: float = Field(default=180.0, gt=0, le=3600)
    """From the call to its being in a block."""
    era_blocks: int = Field(default=64, ge=4, le=4096)
    """How long a signed extrinsic stays valid; a power of two."""
    backoff_first_s: float = Field(default=0.5, gt=0, le=60)
    backoff_max_s: float = Field(default=30.0, gt=0, le=600)
    poll_interval_s: float = Field(default=6.0, gt=0, le=60)
    """How often the best block is asked for while there is no subscription."""
    silence_s: float = Field(default=30.0, gt=0, le=600)
    """After so long without a head from the subscription the best block is asked for."""
    resend_interval_s: float = Field(default=6.0, gt=0, le=600)
    """How often an extrinsic that its node has let go is handed to it again: the same bytes."""
    ping_interval_s: float = Field(default=20.0, gt=0, le=600)
    max_message_bytes: int = Field(default=16 * 1024 * 1024, ge=65_536)
    max_lag_blocks: int = Field(default=16, ge=1, le=10_000)
    """A node so many blocks behind the best one seen is passed over while another URL has a newer block."""
    lag_check_s: float = Field(default=60.0, gt=0, le=3600)
    """How often the other URLs are asked for their best block."""
    test_chain: TestChain = TestChain.NOT_SAID
    """Whether the user vouches that this is a test chain, so that public development keys may sign on it."""

    only_local: bool = False
    """Whether any chain but a local one (mesh.chain.local) is refused: for keys given where others can see them."""

    def model_post_init(self, context: Any, /) -> None:
        if self.era_blocks & (self.era_blocks - 1):
            raise ValueError("era_blocks must be a power of two")
