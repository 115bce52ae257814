"""Sign extrinsics for tests of the runtime, with our own codec. (test_server.py lets foreign code sign.)"""

from __future__ import annotations

import hashlib
from typing import Any

from coincurve import PrivateKey

from mesh.devchain import scale as s
from mesh.devchain.chain import DevChain
from mesh.devchain.extrinsic import SIGNED_V4, Era, Extrinsic
from mesh.devchain.pallets import SPEC_VERSION, TRANSACTION_VERSION
from mesh.identity import keccak256


class Signer:
    """A test account with a key from a name."""

    def __init__(self, name: str) -> None:
        self.key = PrivateKey(hashlib.sha256(name.encode()).digest())
        self.address = keccak256(self.key.public_key.format(compressed=False)[1:])[-20:]
        self.hex = "0x" + self.address.hex()

    def sign(
        self,
        chain: DevChain,
        pallet: str,
        call: str,
        *,
        nonce: int | None = None,
        tip_planck: int = 0,
        era: Era | None = None,
        birth: bytes | None = None,
        genesis: bytes | None = None,
        spec_version: int = SPEC_VERSION,
        call_bytes: bytes | None = None,
        **args: Any,
    ) -> bytes:
        """The bytes of a signed extrinsic. `call_bytes` replaces the encoded call."""
        value = {pallet: {call: args} if args else call}
        encoded = chain.runtime.types.call.encode(value) if call_bytes is None else call_bytes
        era = era or Era(b"\x00")
        ext = Extrinsic(
            raw=b"",
            hash=b"",
            signer=self.address,
            signature=b"",
            era=era,
            nonce=chain.nonce(self.address) if nonce is None else nonce,
            tip_planck=tip_planck,
            call=value,
            call_bytes=encoded,
        )
        payload = ext.payload(
            spec_version=spec_version,
            transaction_version=TRANSACTION_VERSION,
            genesis=genesis or chain.genesis_hash,
            birth=birth or chain.genesis_hash,
        )
        return assemble(ext, self.key.sign_recoverable(keccak256(payload), hasher=None))


def assemble(ext: Extrinsic, signature: bytes) -> bytes:
    """The extrinsic's bytes with a signature."""
    body = b"".join(
        (
            bytes([SIGNED_V4]),
            ext.signer,
            signature,
            ext.era.raw,
            s.encode_compact(ext.nonce),
            s.encode_compact(ext.tip_planck),
            ext.call_bytes,
        )
    )
    return s.encode_compact(len(body)) + body


def mortal(period: int, number: int) -> Era:
    """An era of `period` blocks (a power of two, 4 to 4096) that is alive at block `number`."""
    phase = number % period
    encoded = (period.bit_length() - 2) | phase << 4
    return Era(encoded.to_bytes(2, "little"), period, phase)
