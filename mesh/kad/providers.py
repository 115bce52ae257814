"""Who says that it has what a key names: bounded in keys, in providers of a key, and in keys of a provider. PURE.

libp2p's kad-dht spec, "Content provider advertisement": an entry lives 48 hours unless it is said again, which its
provider does every 22 at least; ours do so oftener (mesh.dht).
"""

from __future__ import annotations

from collections import OrderedDict

from pydantic import BaseModel, ConfigDict, Field

from mesh.peer import PeerID, PeerInfo


class ProviderConfig(BaseModel):
    """Bounds of a ProviderStore."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ttl_s: float = Field(default=172_800.0, gt=0, description="an entry's life unless it is said again; 48 h")
    max_keys: int = Field(default=65_536, ge=1, description="keys; who has most of them loses its oldest first")
    max_per_key: int = Field(default=64, ge=1, description="providers of a key; the longest silent leaves first")
    max_per_provider: int = Field(default=4096, ge=1, description="keys of a provider; its oldest leaves first")


class ProviderStore:
    """Key → providers and their addresses. `now` is any monotonic clock in seconds."""

    def __init__(self, config: ProviderConfig | None = None) -> None:
        self._config = config or ProviderConfig()
        self._keys: OrderedDict[bytes, OrderedDict[PeerID, tuple[PeerInfo, float]]] = OrderedDict()
        self._of: dict[PeerID, OrderedDict[bytes, None]] = {}

    def __len__(self) -> int:
        """Keys with a provider."""
        return len(self._keys)

    def add(self, key: bytes, info: PeerInfo, *, now: float) -> None:
        """A peer says of itself that it has what the key names."""
        peer = info.peer_id
        self._drop(key, peer)
        providers = self._keys.setdefault(key, OrderedDict())
        self._keys.move_to_end(key)
        providers[peer] = (info, now + self._config.ttl_s)
        self._of.setdefault(peer, OrderedDict())[key] = None
        if len(providers) > self._config.max_per_key:
            self._drop(key, next(iter(providers)))
        if len(self._of[peer]) > self._config.max_per_provider:
            self._drop(next(iter(self._of[peer])), peer)
        while len(self._keys) > self._config.max_keys:
            self._drop(*self._next_to_leave())

    def get(self, key: bytes, *, now: float) -> tuple[PeerInfo, ...]:
        """The providers of a key, who spoke last first."""
        providers = self._keys.get(key)
        if providers is None:
            return ()
        return tuple(info for info, expires_at in reversed(providers.values()) if expires_at > now)

    def expire(self, now: float) -> None:
        """Forget who has been silent for too long."""
        for key, providers in tuple(self._keys.items()):
            for peer, (_, expires_at) in tuple(providers.items()):
                if expires_at > now:
                    break  # those behind spoke later
                self._drop(key, peer)

    def _next_to_leave(self) -> tuple[bytes, PeerID]:
        """Of who says most, what was said longest ago: at no cost to those who say little."""
        most = max(map(len, self._of.values()))
        return next((key, peer) for key, peers in self._keys.items() for peer in peers if len(self._of[peer]) == most)

    def _drop(self, key: bytes, peer: PeerID) -> None:
        providers = self._keys.get(key)
        if providers is None or providers.pop(peer, None) is None:
            return
        if not providers:
            del self._keys[key]
        keys = self._of[peer]
        del keys[key]
        if not keys:
            del self._of[peer]
