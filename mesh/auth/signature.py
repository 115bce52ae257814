"""SignatureAuthorizer: signs requests that others will carry, and takes those that others carried to us.

Checked in this order, the first failure ends it: size and form, addressee, chain and subnet, method, window, the body's
digest, floor and nonce, the signature, the signer's class. A request is remembered before it is accepted, and only when
all else held: neither a forger nor a stranger can fill the table. What one check costs is bounded (an RSA key of 8,192
bits is the dearest); how many a peer may have checked per second is for whoever carries the requests to bound.

Bounds: a window of `max_window_s` (300 s at most), clocks `clock_tolerance_s` apart, so a nonce is kept up to
`max_window_s` + `clock_tolerance_s`. Members of a full table's size together can keep others out for that long.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio
from pydantic import BaseModel, ConfigDict, Field

from mesh.auth.authorizer import Authorizer, PeerClass
from mesh.auth.replay import NonceTable, ReplayFloor
from mesh.auth.request import (
    MAX_WINDOW_S,
    NONCE_BYTES,
    Addressed,
    SignedRequest,
    check_addressed,
    check_signature,
    sign_request,
)
from mesh.clock import Clock
from mesh.errors import NotAuthorized
from mesh.identity import PeerKey
from mesh.peer import PeerID

log = logging.getLogger(__name__)


class SignatureConfig(BaseModel):
    """How long signed requests hold, and how many are remembered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_window_s: float = Field(default=MAX_WINDOW_S, gt=0, le=MAX_WINDOW_S)
    clock_tolerance_s: float = Field(default=30.0, ge=0, le=120, description="how far a signer's clock may be off")
    reserve_s: float = Field(default=10.0, gt=0, le=300, description="how far ahead the floor is written")
    max_nonces: int = Field(default=65_536, ge=1, description="about 300 bytes each")
    max_nonces_per_signer: int = Field(default=2048, ge=1)


@dataclass(frozen=True, slots=True)
class Verified:
    """Who signed a request that was accepted."""

    signer: PeerID
    peer_class: PeerClass


class SignatureAuthorizer:
    """Signs and verifies for one identity in one subnet."""

    def __init__(
        self,
        identity: PeerKey,
        inner: Authorizer,
        *,
        genesis: bytes,
        subnet_id: int,
        clock: Clock,
        floor_path: Path | None,
        config: SignatureConfig | None = None,
        token_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`inner` says what the signer may do. `floor_path`: see mesh.auth.replay; None for a node without a disk.
        Raises ConfigError when the file is there and is not ours."""
        self.config = config or SignatureConfig()
        self._identity = identity
        self._inner = inner
        self._genesis = genesis
        self._subnet_id = subnet_id
        self._clock = clock
        self._token_bytes = token_bytes
        self._tolerance_ms = int(self.config.clock_tolerance_s * 1000)
        self._floor = ReplayFloor(
            floor_path,
            start_ms=self._now_ms(),
            tolerance_ms=self._tolerance_ms,
            reserve_ms=int(self.config.reserve_s * 1000),
        )
        self._writing = trio.Lock()
        self.nonces = NonceTable(
            floor_ms=self._floor.floor_ms,
            tolerance_ms=self._tolerance_ms,
            max_nonces=self.config.max_nonces,
            max_per_signer=self.config.max_nonces_per_signer,
        )

    def sign(self, addressee: PeerID, method: str, body: bytes, *, life_s: float = 60.0) -> SignedRequest:
        """A request of ours, good from now for `life_s` (at most `MAX_WINDOW_S`). Raises LocalProtocolError."""
        now_ms = self._now_ms()
        return sign_request(
            self._identity,
            Addressed(self._genesis, self._subnet_id, addressee, method),
            body,
            not_before_ms=now_ms,
            expiry_ms=now_ms + int(life_s * 1000),
            nonce=self._token_bytes(NONCE_BYTES),
        )

    async def verify(self, data: bytes, body: bytes, *, method: str, least: PeerClass) -> Verified:
        """Accept a request, once. `method` is the one about to run.

        Raises RemoteProtocolError for what is no signed request (the carrier's fault), NotAuthorized for everything
        else; what `inner` raises on trouble of its own is raised as it is, and the request is not accepted. Cancelled:
        it may count as used.
        """
        request = SignedRequest.from_bytes(data)
        now_ms = self._now_ms()
        check_addressed(
            request,
            Addressed(self._genesis, self._subnet_id, self._identity.peer_id, method),
            body,
            now_ms=now_ms,
            tolerance_ms=self._tolerance_ms,
            max_window_ms=int(self.config.max_window_s * 1000),
        )
        self.nonces.check(request, now_ms)
        check_signature(request)
        peer_class = await self._inner.authorize(request.signer, method, least)
        if not isinstance(peer_class, PeerClass) or peer_class < least:
            raise NotAuthorized("internal", "this node could not find out whether that is allowed.")
        # From here to the table nothing waits: of two copies that came together one finds the other's nonce.
        self.nonces.add(request, self._now_ms())
        await self._reserve(request.not_before_ms)
        return Verified(request.signer, peer_class)

    async def _reserve(self, not_before_ms: int) -> None:
        async with self._writing:
            if self._floor.covers(not_before_ms):
                return
            try:
                await trio.to_thread.run_sync(self._floor.reserve, not_before_ms)
            except OSError as error:
                log.error("signed requests are refused: their floor cannot be written (%s)", error)
                raise NotAuthorized("internal", "this node cannot remember signed requests now. Try later.") from error

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)
