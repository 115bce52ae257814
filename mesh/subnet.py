"""What a subnet is to the framework: one object with an entry point in the group `mesh.subnets`.

A subnet says which records it writes (`rules`), which methods it serves (`servicers`), what it does all day (`run`) and
what an epoch's evidence is worth (`score`, pure and in integers: every node must compute the same). All it may touch
comes in a SubnetContext, so a test hands it fakes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import trio
from pydantic import BaseModel

from mesh.chain.client import Chain
from mesh.chain.types import Score, Snapshot
from mesh.clock import Clock
from mesh.errors import ConfigError
from mesh.identity import PeerKey
from mesh.kad.record import Record
from mesh.kad.validator import NamespaceRule, pack_value

if TYPE_CHECKING:
    from mesh.chain.epochs import Epochs
    from mesh.content import Content
    from mesh.dht import DHT, StoreReport
    from mesh.gossip import Gossip
    from mesh.presence import Presence
    from mesh.rpc.rpc import Rpc
    from mesh.rpc.servicer import Servicer
    from mesh.worker import Compute

GROUP = "mesh.subnets"


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that an epoch is judged by: the same bytes for every node.

    `snapshot` is the state at the epoch's first block, `draw_hash` the hash of its draw block, `records` the verified
    records agreed on, sorted by digest.
    """

    epoch: int
    subnet_id: int
    genesis: bytes
    snapshot: Snapshot
    draw_hash: bytes
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Settlement:
    """An epoch whose evidence was agreed on: the proposal is on chain and this node recomputed it."""

    evidence: Evidence
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class SubnetContext:
    """Everything a subnet may touch."""

    identity: PeerKey
    subnet_id: int
    genesis: bytes
    dht: DHT
    rpc: Rpc
    chain: Chain
    epochs: Epochs
    content: Content
    gossip: Gossip
    """For messages to all members; a topic of the subnet's own is taken with `gossip.add_rule` before it is used."""
    presence: Presence
    """Which of the others are there."""
    worker: Compute
    clock: Clock
    rng: random.Random
    data_dir: Path
    settlements: trio.MemoryReceiveChannel[Settlement]
    """Epochs as they are settled, oldest first; bounded, the oldest unread one is dropped."""

    async def put_evidence(
        self, epoch: int, key: bytes, value: BaseModel, *, subkey: bytes = b"", ttl_s: float = 3600.0
    ) -> StoreReport:
        """Put a record of ours where an epoch's evidence is looked for: at every validator of its snapshot.

        Raises what `DHT.put` raises, and ChainError when the epoch has not begun. Without validators (no chain) it
        goes to the closest nodes.
        """
        snapshot = await self.epochs.snapshot(epoch)
        validators = snapshot.validator_peers(epoch)
        return await self.dht.put(key, pack_value(value), subkey=subkey, ttl_s=ttl_s, peers=validators or None)


class Subnet(Protocol):
    """A subnet. Subclassing is not needed; tests/subnets/test_contract.py runs over all entry points."""

    @property
    def name(self) -> str:
        """How people call it: the entry point's name."""
        ...

    @property
    def score_id(self) -> str:
        """Name and semver of the scoring function, part of every proposal: others abstain from one they do not
        know."""
        ...

    @property
    def Config(self) -> type[BaseModel]:
        """Its settings: frozen, extra="forbid"; required fields come from the file given with --subnet-config."""
        ...

    @property
    def jobs(self) -> Mapping[str, str]:
        """What its compute worker can do: name -> "package.module:function"; empty when it computes nothing."""
        ...

    def rules(self, config: Any) -> Sequence[NamespaceRule]:
        """The record namespaces it writes; records of any other namespace are refused."""
        ...

    def evidence_keys(self, epoch: int) -> Sequence[bytes]:
        """DHT keys whose records are the evidence of subnet epoch `epoch`."""
        ...

    def servicers(self, ctx: SubnetContext, config: Any) -> Sequence[Servicer]:
        """What it answers over RPC."""
        ...

    async def run(
        self,
        ctx: SubnetContext,
        config: Any,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Its work, until cancelled; started() when ready to earn."""
        ...

    def score(self, evidence: Evidence) -> Sequence[Score]:
        """Scores by node id, ascending; nodes left out are absent. Pure; integers only; never raises on records that
        passed `rules`. Empty means nothing was earned."""
        ...


def installed_subnets() -> tuple[str, ...]:
    """Names of all subnets that can be loaded here, sorted."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def load_subnet(name: str) -> Subnet:
    """The subnet object of an entry point. Raises ConfigError with the names there are."""
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            try:
                loaded: Subnet = entry.load()
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"subnet {name!r} needs the package {error.name!r}: pip install 'mesh-subnets[subnets]'"
                ) from error
            return loaded
    raise ConfigError(f"there is no subnet {name!r}; installed: {', '.join(installed_subnets()) or 'none'}")
