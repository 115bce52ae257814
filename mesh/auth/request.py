"""Signed requests: what proves the origin of a request that did not come over its author's own connection. PURE.

Over a connection the handshake proves who calls, and nothing is signed. A request that is relayed or stored carries a
SignedRequest beside its body. The signature binds a domain tag, genesis and subnet, the method (protocol, version and
name), both peer ids, the body's sha256, a time window and a nonce: so it is good for one body, one method, one
addressee, once (mesh.auth.signature), and for `MAX_WINDOW_S` at most.

Times are unix milliseconds. `check_addressed` is everything that costs nothing but comparisons and one hash; signature,
nonce and class come after it.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

import msgpack

from mesh.errors import LocalProtocolError, NotAuthorized, RemoteProtocolError
from mesh.identity import MAX_PUBLIC_KEY_BYTES, PeerKey, is_signature
from mesh.peer import PeerID

MAX_WINDOW_S: Final = 300.0
"""Between not-before and expiry: how long nonces must be kept at most."""
MAX_METHOD_CHARS: Final = 256
MAX_SIGNATURE_BYTES: Final = 1024  # RSA 8192
MAX_REQUEST_BYTES: Final = 3072
NONCE_BYTES: Final = 16
_DOMAIN: Final = "mesh/signed-request/1"
_VERSION: Final = 1
_MAX_MS: Final = 2**53
_METHOD_RE: Final = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")
_TYPES: Final = [int, bytes, int, str, bytes, bytes, bytes, int, int, bytes, bytes]


@dataclass(frozen=True)
class SignedRequest:
    """One request's proof of origin, without its body. Its fields are bounded, its signature is not checked yet."""

    genesis: bytes
    subnet_id: int
    method: str
    """As `str(MethodSpec)`: protocol with version, a space, name."""
    public_key_pb: bytes = field(repr=False)
    addressee: PeerID
    body_sha256: bytes = field(repr=False)
    not_before_ms: int
    expiry_ms: int
    nonce: bytes
    signature: bytes = field(repr=False)

    @functools.cached_property
    def signer(self) -> PeerID:
        """Who signed, once the signature is checked: the id of the key."""
        return PeerID.of_public_key(self.public_key_pb)

    def signed_bytes(self) -> bytes:
        """The canonical bytes under the signature."""
        return _signed_bytes(
            self.genesis, self.subnet_id, self.method, self.signer, self.addressee, self.body_sha256,
            self.not_before_ms, self.expiry_ms, self.nonce,
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """Wire form; `from_bytes` is its inverse."""
        return _packed(
            [
                _VERSION,
                self.genesis,
                self.subnet_id,
                self.method,
                self.public_key_pb,
                self.addressee.multihash,
                self.body_sha256,
                self.not_before_ms,
                self.expiry_ms,
                self.nonce,
                self.signature,
            ]
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedRequest:
        """Parse and bound, nothing else. Raises RemoteProtocolError."""
        if len(data) > MAX_REQUEST_BYTES:
            raise RemoteProtocolError(
                f"a signed request of {len(data)} bytes; at most {MAX_REQUEST_BYTES} are accepted"
            )
        try:
            fields = msgpack.unpackb(data, max_array_len=len(_TYPES), max_map_len=0, max_ext_len=0)
        except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
            raise RemoteProtocolError("a signed request that is not msgpack") from error
        if not isinstance(fields, list) or [type(value) for value in fields] != _TYPES:
            raise RemoteProtocolError("a signed request with missing fields or of wrong types")
        version, genesis, subnet_id, method, public, addressee, digest, not_before, expiry, nonce, signature = fields
        if version != _VERSION:
            raise RemoteProtocolError(f"a signed request of version {version}; this node reads version {_VERSION}")
        if not (
            len(genesis) == 32
            and 0 <= subnet_id < 2**32
            and is_method(method)
            and 4 < len(public) <= MAX_PUBLIC_KEY_BYTES
            and len(digest) == 32
            and 0 <= not_before < expiry <= _MAX_MS
            and len(nonce) == NONCE_BYTES
            and 0 < len(signature) <= MAX_SIGNATURE_BYTES
        ):
            raise RemoteProtocolError("a signed request with a field out of range")
        request = cls(
            genesis, subnet_id, method, public, PeerID(addressee), digest, not_before, expiry, nonce, signature
        )
        if request.to_bytes() != data:
            raise RemoteProtocolError("a signed request that is not in canonical form")
        return request


@dataclass(frozen=True, slots=True)
class Addressed:
    """What a request must say to be for us: compared with what it does say."""

    genesis: bytes
    subnet_id: int
    addressee: PeerID
    method: str


def is_method(text: str) -> bool:
    """Whether this can name a method: printable ASCII words, one space between."""
    return len(text) <= MAX_METHOD_CHARS and _METHOD_RE.fullmatch(text) is not None


def sign_request(
    identity: PeerKey, to: Addressed, body: bytes, *, not_before_ms: int, expiry_ms: int, nonce: bytes
) -> SignedRequest:
    """A request of ours. Raises LocalProtocolError for what nobody would take."""
    if not is_method(to.method):
        raise LocalProtocolError(f"{to.method[:80]!r} names no method")
    if not (0 <= not_before_ms < expiry_ms <= _MAX_MS and expiry_ms - not_before_ms <= MAX_WINDOW_S * 1000):
        raise LocalProtocolError(f"a signed request is good for up to {MAX_WINDOW_S:g} s")
    if len(nonce) != NONCE_BYTES or len(to.genesis) != 32 or not 0 <= to.subnet_id < 2**32:
        raise LocalProtocolError("a signed request has a nonce of 16 bytes, a genesis hash of 32, a subnet id of u32")
    digest = hashlib.sha256(body).digest()
    message = _signed_bytes(
        to.genesis, to.subnet_id, to.method, identity.peer_id, to.addressee, digest, not_before_ms, expiry_ms, nonce
    )
    return SignedRequest(
        to.genesis, to.subnet_id, to.method, identity.public_key_pb, to.addressee, digest, not_before_ms, expiry_ms,
        nonce, identity.sign(message),
    )  # fmt: skip


def check_addressed(
    request: SignedRequest,
    to: Addressed,
    body: bytes,
    *,
    now_ms: int,
    tolerance_ms: int,
    max_window_ms: int,
) -> None:
    """Everything but nonce, signature and class, cheapest first. Raises NotAuthorized.

    A request holds from `tolerance_ms` before its not-before (its signer's clock may be ahead of ours) until
    `tolerance_ms` after its expiry, that moment excluded.
    """
    if request.addressee != to.addressee:
        raise NotAuthorized("wrong-addressee", f"this request is signed for {request.addressee}, not for us.")
    if (request.genesis, request.subnet_id) != (to.genesis, to.subnet_id):
        raise NotAuthorized("wrong-subnet", f"this request is signed for subnet {request.subnet_id} of another chain.")
    if request.method != to.method:
        raise NotAuthorized("wrong-method", f"this request is signed for {request.method}, not for {to.method}.")
    if request.expiry_ms - request.not_before_ms > max_window_ms:
        raise NotAuthorized("window-too-long", f"a signed request may hold for {max_window_ms / 1000:g} s here.")
    if now_ms < request.not_before_ms - tolerance_ms:
        early_s = (request.not_before_ms - now_ms) / 1000
        raise NotAuthorized("not-yet-valid", f"this request begins in {early_s:.3f} s by our clock: set yours right.")
    if now_ms >= request.expiry_ms + tolerance_ms:
        late_s = (now_ms - request.expiry_ms) / 1000
        raise NotAuthorized("expired", f"this request ended {late_s:.3f} s ago by our clock: sign it anew.")
    if hashlib.sha256(body).digest() != request.body_sha256:
        raise NotAuthorized("wrong-body", "this is not the body that was signed.")


def check_signature(request: SignedRequest) -> None:
    """Raises NotAuthorized; for a key that is none as well."""
    try:
        is_good = is_signature(request.public_key_pb, request.signed_bytes(), request.signature)
    except RemoteProtocolError as error:
        raise NotAuthorized("bad-signature", "this request's key is no peer key of an accepted type.") from error
    if not is_good:
        raise NotAuthorized("bad-signature", f"this request is not signed by {request.signer}.")


def _signed_bytes(
    genesis: bytes, subnet_id: int, method: str, signer: PeerID, addressee: PeerID, digest: bytes, not_before_ms: int,
    expiry_ms: int, nonce: bytes,
) -> bytes:  # fmt: skip
    return _packed(
        [_DOMAIN, genesis, subnet_id, method, signer.multihash, addressee.multihash, digest, not_before_ms, expiry_ms,
         nonce]
    )  # fmt: skip


def _packed(fields: list[object]) -> bytes:
    packed = msgpack.packb(fields, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed
