"""That a signed request is accepted once: nonces in memory while their window lasts, and one number on disk.

In one process a nonce is kept until its request cannot be accepted any more. A table that is full refuses; it never
forgets one early. Should the clock be set back, requests whose nonce was forgotten by the earlier time stay refused.

Across a restart nonces are lost, so a floor takes their place: requests that begin before it are refused. The floor is
a time that lies above the not-before of every request that was accepted; it is reserved ahead (`reserve_ms`), written
and flushed *before* the first request beyond it is accepted, so a crash at any moment leaves a file that covers all
that was let in. This costs one small write per `reserve_ms` and nothing per request, where a store of nonces costs one
flush each; the price is that after a restart requests signed before it, and up to `reserve_ms` + the clock tolerance
of its sender later, must be signed anew. Without a file the floor is the start of the process plus the tolerance,
which is as safe as long as the clock was not set back meanwhile.
"""

from __future__ import annotations

import heapq
from pathlib import Path
from typing import Final

from mesh.auth.request import SignedRequest
from mesh.errors import ConfigError, NotAuthorized
from mesh.files import Durable, replace_file
from mesh.peer import PeerID

_HEADER: Final = b"mesh/replay-floor/1 "
_MAX_FILE_BYTES: Final = 64


class NonceTable:
    """The nonces of accepted requests. PURE: unix milliseconds are arguments.

    At most `max_nonces` in all and `max_per_signer` of one signer, so that one who signs much runs out alone.
    """

    def __init__(self, *, floor_ms: int, tolerance_ms: int, max_nonces: int, max_per_signer: int) -> None:
        self._floor_ms = floor_ms
        self._tolerance_ms = tolerance_ms
        self._max_nonces = max_nonces
        self._max_per_signer = max_per_signer
        self._signers: dict[PeerID, set[bytes]] = {}
        self._ends: list[tuple[int, PeerID, bytes]] = []
        """A heap: what can be forgotten first is first."""
        self._forgotten_ms = 0
        """The latest end of a request whose nonce was forgotten."""

    def __len__(self) -> int:
        return len(self._ends)

    def check(self, request: SignedRequest, now_ms: int) -> None:
        """Whether it may be accepted, as far as the table knows. Raises NotAuthorized."""
        if request.not_before_ms < self._floor_ms:
            raise NotAuthorized(
                "signed-before-restart",
                f"this node was restarted and takes no request that begins before {self._floor_ms} ms: sign it anew.",
                retry_after_s=max(0.0, (self._floor_ms - now_ms) / 1000),
            )
        self._forget(now_ms)
        mine = self._signers.get(request.signer, ())
        if request.nonce in mine or self._end_ms(request) <= self._forgotten_ms:
            raise NotAuthorized("replayed", "this request was accepted before, or could have been: sign a new one.")
        for whose, count, limit in (
            ("of this signer", len(mine), self._max_per_signer),
            ("of all signers", len(self), self._max_nonces),
        ):
            if count >= limit:
                raise NotAuthorized(
                    "nonces-full", f"{count} signed requests {whose} are still within their window. Try later."
                )

    def add(self, request: SignedRequest, now_ms: int) -> None:
        """`check` and remember, in one step. Raises NotAuthorized."""
        self.check(request, now_ms)
        self._signers.setdefault(request.signer, set()).add(request.nonce)
        heapq.heappush(self._ends, (self._end_ms(request), request.signer, request.nonce))

    def _end_ms(self, request: SignedRequest) -> int:
        return request.expiry_ms + self._tolerance_ms

    def _forget(self, now_ms: int) -> None:
        while self._ends and self._ends[0][0] <= now_ms:
            end_ms, signer, nonce = heapq.heappop(self._ends)
            self._forgotten_ms = max(self._forgotten_ms, end_ms)
            self._signers[signer].discard(nonce)
            if not self._signers[signer]:
                del self._signers[signer]


class ReplayFloor:
    """The number on disk; mode 0600, replaced as a whole and flushed. One process per file."""

    def __init__(self, path: Path | None, *, start_ms: int, tolerance_ms: int, reserve_ms: int) -> None:
        """`start_ms` is now. `path` None: nothing is written, see the module. Raises ConfigError for a file that is
        there and is not ours."""
        self._path = path
        self._reserve_ms = reserve_ms
        self.floor_ms = start_ms + tolerance_ms + 1
        """What begins before is refused in this process."""
        if path is not None and (found := _read(path)) is not None:
            self.floor_ms = found
        self._reserved_ms = self.floor_ms

    def covers(self, not_before_ms: int) -> bool:
        """Whether a request that begins then may be accepted without writing."""
        return self._path is None or not_before_ms < self._reserved_ms

    def reserve(self, not_before_ms: int) -> None:
        """Write the file so that it covers a request that begins then. Blocks. Raises OSError; nothing may be accepted
        then."""
        if self._path is None or self.covers(not_before_ms):
            return
        reserved_ms = not_before_ms + self._reserve_ms
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self._path, _HEADER + b"%d\n" % reserved_ms, durable=Durable.YES)
        self._reserved_ms = reserved_ms


def _read(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    number = data.removeprefix(_HEADER).removesuffix(b"\n")
    if not data.startswith(_HEADER) or not data.endswith(b"\n") or not number.isdigit():
        raise ConfigError(
            f"{path} is not what was written: remove it once no request signed by now is valid any more (six minutes)"
        )
    return int(number)
