"""What a node is told: one frozen model, filled by the command line, the environment and `.env`.

Components keep their own limits in config models beside them; here is what the person who runs a node decides.
"""

from __future__ import annotations

import enum
from pathlib import Path

from multiaddr import Multiaddr
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mesh.errors import ConfigError, ProtocolError
from mesh.peer import PeerInfo

DEFAULT_CHAIN_URL = "ws://127.0.0.1:9944"
SECRET_VARIABLES = ("MESH_COLDKEY", "MESH_HOTKEY", "PHRASE", "MESH_KEY_PASSWORD")
"""Environment variables that hold secrets: a child process that does not sign does not get them."""
VARIABLES = (*SECRET_VARIABLES, "MESH_CHAIN_URL", "LOCAL_RPC", "PUBLIC_INITIAL_PEERS")
"""All that `.env` may set."""


class Discovery(enum.StrEnum):
    """How a node finds peers that nobody told it of."""

    OFF = "off"
    MDNS = "mdns"
    """It announces itself on the local network and reads what others announce (mesh.net.mdns)."""


class NodeConfig(BaseModel):
    """One node's settings. Raises pydantic's ValidationError naming the field and its range."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity_path: Path = Field(description="libp2p key file of this node")
    data_dir: Path = Field(description="where the node keeps what it must remember between runs")
    host_maddrs: tuple[str, ...] = Field(default=("/ip4/127.0.0.1/tcp/0",), min_length=1, max_length=8)
    announce_maddrs: tuple[str, ...] = Field(default=(), max_length=8)
    initial_peers: tuple[str, ...] = Field(default=(), max_length=64)
    data_port: int = Field(default=0, ge=0, le=65535, description="TCP port of data connections; 0 takes a free one")
    discovery: Discovery = Discovery.OFF
    drain_s: float = Field(default=5.0, ge=0, le=3600, description="how long running calls may go on at the end")
    is_new_swarm: bool = Field(default=False, description="whether to join nobody, not even the chain's bootnodes")
    subnet_id: int = Field(default=1, ge=1, lt=2**32, description="friendly (1) or real (128001) subnet id")
    subnet_node_id: int | None = Field(default=None, ge=1, lt=2**32)
    chain_urls: tuple[str, ...] = Field(default=(DEFAULT_CHAIN_URL,), max_length=8)
    min_stake_planck: int = Field(default=0, ge=0, description="stake a registered node needs to be a member for us")
    guest_open: bool = Field(default=False, description="whether strangers may read the DHT and call guest methods")
    keep_records: bool = Field(default=False, description="whether DHT records are kept on disk over restarts")
    metrics_port: int | None = Field(default=None, ge=0, le=65535, description="where Prometheus scrapes, on loopback")
    membership_grace_s: float = Field(default=60.0, ge=0, le=3600)

    @field_validator("host_maddrs", "announce_maddrs")
    @classmethod
    def _addresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            try:
                Multiaddr(value)
            except ValueError as error:
                raise ValueError(f"{value!r} is not a multiaddr such as /ip4/0.0.0.0/tcp/31330") from error
        return values

    def bootstrap(self) -> tuple[PeerInfo, ...]:
        """`initial_peers`, parsed. Raises ConfigError naming the one that is wrong."""
        try:
            return tuple(PeerInfo.parse(text) for text in self.initial_peers)
        except ProtocolError as error:
            raise ConfigError(f"--initial_peers: {error}") from error


def usable_maddrs(values: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(addresses this build can use, those it leaves out): QUIC and other UDP transports are not offered."""
    usable = tuple(v for v in values if "/udp/" not in v and "/quic" not in v)
    return usable, tuple(v for v in values if v not in usable)
