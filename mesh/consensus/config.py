"""Times and bounds of the consensus loop."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from mesh.consensus.storing import MAX_TTL_S


class ConsensusConfig(BaseModel):
    """Times and bounds of the loop. Blocks are for epochs of 20 and scale with the length."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gather_block: int = Field(
        default=2, ge=0, le=10, description="until this block a proposer waits for all inventories, then n-f suffice"
    )
    give_up_block: int = Field(default=3, ge=0, le=10, description="from this block on too few means an empty proposal")
    settle_back: int = Field(
        default=2, ge=0, le=3, description="epochs settled before the last one told again at start"
    )
    keep_epochs: int = Field(default=3, ge=1, le=16, description="how many epochs a blob is kept after its work")
    fetch_timeout_s: float = Field(default=60.0, gt=0, description="what fetching one blob may take at one block")
    ask_timeout_s: float = Field(default=5.0, gt=0, description="what asking others for records may take at one block")
    max_asked_peers: int = Field(default=8, ge=1, le=64, description="peers asked at once for one missing thing")
    max_tries: int = Field(default=5, ge=1, description="extrinsics the chain refuses before an epoch is given up")
    ttl_s: float = Field(default=7200.0, gt=0, le=MAX_TTL_S, description="life of inventories and refusals")
    checks_per_turn: int = Field(default=16, ge=1, description="signatures checked before other tasks run")
