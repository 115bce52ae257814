"""Extrinsics, version 4, as Ethereum-style Substrate chains sign them.

    Compact(length) ++ 0x84 ++ AccountId20 ++ signature (r s v) ++ era ++ Compact nonce ++ Compact tip ++ call

What is signed is call ++ era ++ nonce ++ tip ++ spec version ++ transaction version ++ genesis hash ++ hash of the
block at which the era was born (the genesis hash when immortal); blake2-256 of that when it is longer than 256
bytes; keccak-256 of the result, without the "Ethereum Signed Message" prefix. The call is encoded again before the
signature is checked, as the real runtime does: a map whose keys are out of order is a bad proof.

PURE.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from coincurve import PublicKey

from mesh.devchain import scale as s
from mesh.errors import ExtrinsicInvalid
from mesh.identity import keccak256

SIGNED_V4 = 0x84
UNSIGNED_V4 = 0x04
HASHED_PAYLOAD_BYTES = 256
"""A signed payload longer than this is replaced by its blake2-256."""


class Refused(ExtrinsicInvalid):
    """An extrinsic that may not enter the pool or a block. `code`, `message` and `data` are Substrate's RPC error."""

    def __init__(self, code: int, message: str, data: str) -> None:
        super().__init__(code, f"{message}: {data}")
        self.title = message
        self.data = data


def invalid(data: str) -> Refused:
    """Error 1010 with Substrate's own words for the reason."""
    return Refused(1010, "Invalid Transaction", data)


BAD_PROOF = "Transaction has a bad signature"
STALE = "Transaction is outdated"
FUTURE = "Transaction will be valid in the future"
PAYMENT = "Inability to pay some fees (e.g. account balance too low)"
ANCIENT_BIRTH = "Transaction has an ancient birth block"


def blake2_256(data: bytes) -> bytes:
    """Substrate's usual hash, 32 bytes."""
    return hashlib.blake2b(data, digest_size=32).digest()


@dataclass(frozen=True)
class Era:
    """How long an extrinsic may be included: for ever, or `period` blocks from a birth with `phase`."""

    raw: bytes
    period: int = 0
    phase: int = 0

    @property
    def immortal(self) -> bool:
        """No end."""
        return self.period == 0

    def birth(self, number: int) -> int:
        """The block at which the era was born, seen from block `number`; 0 when immortal."""
        if self.immortal:
            return 0
        return (max(number, self.phase) - self.phase) // self.period * self.period + self.phase


def read_era(reader: s.Reader) -> Era:
    """Read an era: one zero byte, or two bytes of period and phase."""
    first = reader.byte()
    if first == 0:
        return Era(b"\x00")
    second = reader.byte()
    encoded = first | second << 8
    period = 2 << (encoded % 16)
    phase = (encoded >> 4) * max(period >> 12, 1)
    if period < 4 or phase >= period:
        raise s.ScaleError(f"an era of period {period} and phase {phase}")
    return Era(bytes([first, second]), period, phase)


@dataclass(frozen=True)
class Extrinsic:
    """A decoded signed extrinsic. `raw` has its length prefix; `call_bytes` is the call encoded again."""

    raw: bytes
    hash: bytes
    signer: bytes
    signature: bytes
    era: Era
    nonce: int
    tip_planck: int
    call: Any
    call_bytes: bytes

    def payload(self, *, spec_version: int, transaction_version: int, genesis: bytes, birth: bytes) -> bytes:
        """The bytes under the signature, before keccak."""
        full = b"".join(
            (
                self.call_bytes,
                self.era.raw,
                s.encode_compact(self.nonce),
                s.encode_compact(self.tip_planck),
                spec_version.to_bytes(4, "little"),
                transaction_version.to_bytes(4, "little"),
                genesis,
                birth,
            )
        )
        return blake2_256(full) if len(full) > HASHED_PAYLOAD_BYTES else full


_NONCE = s.compact(s.u32)
_TIP = s.compact(s.u128)


def parse(raw: bytes, call_type: s.Type) -> Extrinsic:
    """Decode a signed extrinsic wholly; `ScaleError` for anything else."""
    reader = s.Reader(raw)
    length = s.decode_compact(reader)
    if length != reader.remaining:
        raise s.ScaleError(f"an extrinsic of {reader.remaining} bytes whose prefix says {length}")
    version = reader.byte()
    if version != SIGNED_V4:
        raise s.ScaleError(f"extrinsic version byte {version:#04x}, only signed version 4 (0x84) is taken")
    signer = reader.take(20)
    signature = reader.take(65)
    era = read_era(reader)
    nonce = _NONCE.decode(reader)
    tip = _TIP.decode(reader)
    call = call_type.decode(reader)
    reader.finish()
    return Extrinsic(raw, blake2_256(raw), signer, signature, era, nonce, tip, call, call_type.encode(call))


def inherent(call_bytes: bytes) -> bytes:
    """An unsigned extrinsic, which only the block's author makes."""
    body = bytes([UNSIGNED_V4]) + call_bytes
    return s.encode_compact(len(body)) + body


def is_inherent(raw: bytes) -> bool:
    """Whether an extrinsic of a block came from its author, unsigned."""
    reader = s.Reader(raw)
    s.decode_compact(reader)
    return reader.byte() == UNSIGNED_V4


def parse_inherent(raw: bytes, call_type: s.Type) -> Any:
    """The call of an extrinsic that the block's author made; `ScaleError` for anything else."""
    reader = s.Reader(raw)
    if s.decode_compact(reader) != reader.remaining or reader.byte() != UNSIGNED_V4:
        raise s.ScaleError("an extrinsic that is no author's")
    call = call_type.decode(reader)
    reader.finish()
    return call


def recover(payload: bytes, signature: bytes) -> bytes:
    """The 20-byte address that signed `payload`. Raises Refused when the 65 bytes are no signature at all."""
    v = signature[64]
    if v in (27, 28):
        v -= 27
    if v > 3:
        raise invalid(BAD_PROOF)
    try:
        key = PublicKey.from_signature_and_message(signature[:64] + bytes([v]), keccak256(payload), hasher=None)
    except ValueError as error:
        raise invalid(BAD_PROOF) from error
    return keccak256(key.format(compressed=False)[1:])[-20:]
