"""What a DHT node keeps on disk: the highest seq it may have signed, and peers to come back to.

Seqs are reserved a minute ahead, so that the file is written once a minute and not once a record, and a node
that restarts, even with its clock set back, never signs one twice.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from mesh.errors import ConfigError, RemoteProtocolError
from mesh.files import Durable, replace_file
from mesh.peer import PeerID, PeerInfo

log = logging.getLogger(__name__)

RESERVE_MS: Final = 60_000
_VERSION: Final = 1
_MAX_FILE_BYTES: Final = 4 * 2**20


class DhtState:
    """Seqs and the peer cache. With `path` None nothing survives the process."""

    def __init__(self, path: Path | None, *, max_peers: int) -> None:
        """Raises ConfigError when the file is there and is not ours: without it a seq could be signed
        twice."""
        self._path = path
        self._max_peers = max_peers
        self._last_seq = 0
        self._reserved = 0
        self._peers: OrderedDict[PeerID, PeerInfo] = OrderedDict()
        if path is not None and path.exists():
            self._load(path)

    def next_seq(self, now: float) -> int:
        """max(last + 1, `now` in unix ms), saved before it is returned. Raises ConfigError when it cannot
        be."""
        seq = max(self._last_seq + 1, int(now * 1000))
        if seq > self._reserved:
            before, self._reserved = self._reserved, seq + RESERVE_MS
            try:
                self.save()
            except ConfigError:
                self._reserved = before  # nothing is reserved that is not on disk
                raise
        self._last_seq = seq
        return seq

    def remember(self, peers: Iterable[PeerInfo]) -> None:
        """Peers that answered lately; the longest unheard of leave first."""
        for info in peers:
            if info.addrs:
                self._peers.pop(info.peer_id, None)
                self._peers[info.peer_id] = info
        while len(self._peers) > self._max_peers:
            self._peers.popitem(last=False)

    @property
    def peers(self) -> tuple[PeerInfo, ...]:
        """The cache, newest first."""
        return tuple(reversed(self._peers.values()))

    def save(self) -> None:
        """Write the file anew, atomically. Raises ConfigError."""
        if self._path is None:
            return
        text = json.dumps(
            {
                "version": _VERSION,
                "seq": self._reserved,
                "peers": [text for info in self._peers.values() for text in info.multiaddrs()],
            }
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, text.encode(), durable=Durable.YES)
        except OSError as error:
            raise ConfigError(f"cannot write the DHT's state to {self._path}: {error.strerror}") from error

    def _load(self, path: Path) -> None:
        problem = f"{path} is not this program's DHT state: move it away to start anew"
        try:
            with path.open("rb") as file:
                loaded = json.loads(file.read(_MAX_FILE_BYTES))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{problem} ({error})") from error
        if not isinstance(loaded, dict) or loaded.get("version") != _VERSION or type(loaded.get("seq")) is not int:
            raise ConfigError(problem)
        self._last_seq = self._reserved = max(0, loaded["seq"])
        for text in loaded.get("peers", [])[: self._max_peers * 8]:
            try:
                info = PeerInfo.parse(str(text))
            except RemoteProtocolError as error:
                log.debug("dht.cached_peer_skipped", extra={"peer": text, "error": str(error)})
                continue
            known = self._peers.pop(info.peer_id, PeerInfo(info.peer_id))
            self._peers[info.peer_id] = PeerInfo(info.peer_id, (*known.addrs, *info.addrs))
        self.remember(())
