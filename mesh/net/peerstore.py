"""Where peers have answered this node, kept over restarts: whoever knows an address that worked needs no bootnode.

Only addresses at which a peer proved its key are kept, never hearsay, so that strangers cannot fill the file. It is
not the DHT's cache (mesh.dht.state), which lists peers to join through wherever their addresses come from. The file is
nevertheless read as if a stranger had written it, and a damaged one is set aside: it costs a slower start, no more.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from mesh.errors import RemoteProtocolError
from mesh.files import Durable, replace_file
from mesh.net.addresses import tcp_endpoint
from mesh.peer import Multiaddr, PeerID, PeerInfo

log = logging.getLogger(__name__)

_VERSION: Final = 1
_MAX_ADDR_CHARS: Final = 320
"""A DNS name of 253 characters and what stands around it."""


class PeerStoreConfig(BaseModel):
    """Bounds of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_peers: int = Field(default=1024, ge=1)
    """Those proved longest ago leave first."""
    max_addrs: int = Field(default=4, ge=1)
    """Addresses per peer, the newest proofs."""
    max_bytes: int = Field(default=2**20, ge=1024)
    """Of the file: a larger one is not read, and never written."""
    expire_s: float = Field(default=7 * 86_400.0, gt=0)
    """How long a proof counts."""
    save_interval_s: float = Field(default=60.0, gt=0)


class PeerStore:
    """Proved addresses by peer, with the unix time of each proof. `now` is unix seconds."""

    def __init__(self, path: Path, config: PeerStoreConfig | None = None, *, now: float) -> None:
        """Loads what is there. A file that is not ours, torn or too large is renamed and reported; never raises."""
        self.path = path
        self.config = config or PeerStoreConfig()
        self._peers: OrderedDict[PeerID, dict[Multiaddr, float]] = OrderedDict()
        self._is_saved = True
        try:
            data = _read(path, self.config.max_bytes)
        except OSError as error:
            log.warning("cannot read known peers from %s: %s", path, error.strerror)
            return
        except ValueError as error:
            self._set_aside(error)
            return
        if data is not None:
            try:
                self._load(data, now)
            except (ValueError, RecursionError) as error:
                self._peers.clear()
                self._set_aside(error)

    def proved(self, peer: PeerID, address: Multiaddr, *, now: float) -> None:
        """The peer answered at `address` with its key."""
        addresses = self._peers.setdefault(peer, {})
        self._peers.move_to_end(peer)
        addresses.pop(address, None)
        addresses[address] = now
        while len(addresses) > self.config.max_addrs:
            del addresses[next(iter(addresses))]
        while len(self._peers) > self.config.max_peers:
            self._peers.popitem(last=False)
        self._is_saved = False

    def wrong(self, peer: PeerID, address: Multiaddr) -> None:
        """Somebody else answered there: forget it."""
        addresses = self._peers.get(peer)
        if addresses is not None and addresses.pop(address, None) is not None:
            self._is_saved = False
            if not addresses:
                del self._peers[peer]

    def peers(self, *, now: float) -> tuple[PeerInfo, ...]:
        """What has not expired; newest proof first, among peers and among a peer's addresses."""
        self._expire(now)
        return tuple(PeerInfo(peer, tuple(reversed(addrs))) for peer, addrs in reversed(self._peers.items()))

    def save(self, *, now: float) -> None:
        """Write the file if anything changed, atomically, mode 0600. What cannot be written is reported, not raised:
        a full disk must not end a node."""
        self._expire(now)
        if self._is_saved:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, self._encoded(), durable=Durable.NO)
            self._is_saved = True
        except OSError as error:
            log.warning("cannot write known peers to %s: %s", self.path, error.strerror)

    def _encoded(self) -> bytes:
        while True:
            peers = [
                {"peer": str(peer), "addresses": [{"address": str(a), "proved_s": t} for a, t in addresses.items()]}
                for peer, addresses in self._peers.items()
            ]
            data = json.dumps({"version": _VERSION, "peers": peers}).encode()
            if len(data) <= self.config.max_bytes:
                return data
            for _ in range((len(self._peers) + 1) // 2):
                self._peers.popitem(last=False)

    def _expire(self, now: float) -> None:
        oldest = now - self.config.expire_s
        for peer in list(self._peers):
            addresses = self._peers[peer]
            for address in [a for a, at in addresses.items() if at <= oldest]:
                del addresses[address]
                self._is_saved = False
            if not addresses:
                del self._peers[peer]

    def _load(self, data: bytes, now: float) -> None:
        """Raises ValueError for whatever `save` would not have written."""
        content = json.loads(data)
        if not isinstance(content, dict) or content.get("version") != _VERSION:
            raise ValueError(f"not version {_VERSION}")
        entries = _list(content.get("peers"), self.config.max_peers, "peers")
        found: list[tuple[float, PeerID, Multiaddr]] = []
        for entry in entries:
            peer = _peer(entry)
            items = _list(entry.get("addresses"), self.config.max_addrs, "addresses")
            # From the future: the clock was set back since, or somebody wants an entry that never expires.
            found += [(min(_time(item), now), peer, _address(item)) for item in items]
        for at, peer, address in sorted(found, key=lambda one: one[0]):
            self.proved(peer, address, now=at)
        self._is_saved = True
        self._expire(now)

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged")
        try:
            os.replace(self.path, aside)
            where = f"; it is now {aside.name}"
        except OSError as problem:
            where = f", and it cannot be moved away: {problem.strerror}"
        log.warning("%s is no list of known peers (%s)%s; starting without", self.path, str(error)[:200], where)


def _read(path: Path, max_bytes: int) -> bytes | None:
    """The file's bytes, None when there is none. Raises OSError, and ValueError when it is no file or too large."""
    try:
        # A named pipe must not make us wait, nor a link lead elsewhere.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        if path.is_symlink():
            raise ValueError("a symbolic link") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("not a regular file")
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    finally:
        os.close(handle)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    return data


def _list(value: object, limit: int, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise ValueError(f"{name} is no list of at most {limit}")
    return value


def _peer(entry: object) -> PeerID:
    text = entry.get("peer") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise ValueError("a peer without an id")
    try:
        return PeerID.parse(text)
    except RemoteProtocolError as error:
        raise ValueError(str(error)) from error


def _time(item: object) -> float:
    value = item.get("proved_s") if isinstance(item, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError("an address without the time of its proof")
    return float(value)


def _address(item: dict[str, Any]) -> Multiaddr:
    text = item.get("address")
    if not isinstance(text, str) or len(text) > _MAX_ADDR_CHARS:
        raise ValueError("an address that is none")
    try:
        address = Multiaddr(text)
    except ValueError as error:
        raise ValueError(f"an address that is none: {text[:80]!r}") from error
    if tcp_endpoint(address) is None:
        raise ValueError(f"an address nobody can dial: {text[:80]!r}")
    return address
