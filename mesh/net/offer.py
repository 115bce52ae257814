"""Offers of a data connection: what two peers tell each other over their libp2p connection before they dial. PURE.

    offer   = [1, certificate (DER), nonce (32 bytes), port or 0]
    refusal = [0, reason, text]

The name under which the dialling side asks for the connection, and what both prove to each other inside TLS, are hashes
over both offers, both peer ids and who dials; so nothing of one connection fits another.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

import msgpack

from mesh.errors import RemoteProtocolError
from mesh.peer import PeerID
from mesh.rpc.frame import printable

MAX_OFFER_BYTES: Final = 4096
NONCE_BYTES: Final = 32
MAX_CERTIFICATE_BYTES: Final = 2048
_MAX_TEXT: Final = 480
_DOMAIN: Final = b"mesh/data/1"


class Offer(NamedTuple):
    """One side's certificate, made for this connection alone, and the port it listens at (0: it will dial)."""

    certificate: bytes
    nonce: bytes
    port: int


class Refusal(NamedTuple):
    """Why there will be no data connection: a short stable word and a sentence."""

    reason: str
    text: str


def encode(value: Offer | Refusal) -> bytes:
    """With its length in front (two bytes)."""
    if isinstance(value, Offer):
        body = msgpack.packb((1, value.certificate, value.nonce, value.port))
    else:
        body = msgpack.packb((0, value.reason[:64], printable(value.text, _MAX_TEXT)))
    return len(body).to_bytes(2, "big") + bytes(body)


def decode(body: bytes) -> Offer | Refusal:
    """What follows the length. Raises RemoteProtocolError."""
    try:
        fields = msgpack.unpackb(
            body,
            use_list=False,
            max_array_len=4,
            max_map_len=0,
            max_ext_len=0,
            max_bin_len=MAX_CERTIFICATE_BYTES,
            max_str_len=4 * _MAX_TEXT,
        )
    except (ValueError, OverflowError, RecursionError) as error:
        raise RemoteProtocolError(f"an offer is not msgpack: {error}") from error
    match fields:
        case (1, bytes(certificate), bytes(nonce), int(port)) if (
            certificate and len(nonce) == NONCE_BYTES and type(port) is int and (port == 0 or 1024 <= port < 65536)
        ):
            return Offer(certificate, nonce, port)
        case (0, str(reason), str(text)) if (
            len(reason) <= 64 and len(text) <= _MAX_TEXT and (reason + text).isprintable()
        ):
            return Refusal(reason, text)
    raise RemoteProtocolError("neither an offer of a data connection nor a refusal")


class Agreement(NamedTuple):
    """What both offers together fix."""

    name: str
    """Server name of the TLS handshake, used once."""
    hello: bytes
    """What the dialling side proves inside TLS."""
    ack: bytes
    """What the listening side answers."""


def agree(asker: PeerID, asked: PeerID, first: Offer, second: Offer, *, dialler: PeerID) -> Agreement:
    """Of the asker's offer `first` and the asked peer's `second`."""
    parts = (
        asker.multihash,
        asked.multihash,
        dialler.multihash,
        *(
            part
            for offer in (first, second)
            for part in (offer.certificate, offer.nonce, offer.port.to_bytes(2, "big"))
        ),
    )
    transcript = b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def derive(label: bytes) -> bytes:
        return hashlib.sha256(_DOMAIN + b"/" + label + b"\0" + transcript).digest()

    # A DNS label has at most 63 characters.
    return Agreement(derive(b"name").hex()[:56], derive(b"hello"), derive(b"ack"))
