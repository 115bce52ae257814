"""Placeholder until the wire branch is merged."""

from __future__ import annotations

from collections import OrderedDict

from pydantic import BaseModel, ConfigDict

from mesh.peer import PeerID, PeerInfo


class ProviderConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    ttl_s: float = 172_800.0


class ProviderStore:
    def __init__(self, config: ProviderConfig | None = None) -> None:
        self._config = config or ProviderConfig()
        self._keys: OrderedDict[bytes, dict[PeerID, tuple[PeerInfo, float]]] = OrderedDict()

    def add(self, key: bytes, info: PeerInfo, *, now: float) -> None:
        self._keys.setdefault(key, {})[info.peer_id] = (info, now + self._config.ttl_s)

    def get(self, key: bytes, *, now: float) -> tuple[PeerInfo, ...]:
        return tuple(info for info, at in self._keys.get(key, {}).values() if at > now)

    def expire(self, now: float) -> None:
        return None
