"""What part of a core do bad signatures cost, with and without what protects a node from them?

Records with garbage signatures are offered at a steady rate, in batches of 128 as store requests bring them, by one
sender or by a thousand: parsed, validated and refused as a node does. Every record is otherwise good, so that only the
signature refuses it. Time is simulated, processor time is measured: "share of a core" is how many seconds of it a
second of the offered load takes. Without protection means no penalty and no budget of checks, and a rate nobody meets.
Run: python benchmarks/dht_validate.py [--per-second 8000] [--seconds 10]
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time

from mesh.errors import RecordRejected
from mesh.identity import KeyType, PeerKey, is_signature
from mesh.kad.key import key_of_peer
from mesh.kad.rate import RateConfig
from mesh.kad.record import Record, sign_record
from mesh.kad.store import RecordStore
from mesh.kad.validator import NamespaceRule, Purpose, RecordValidator, ValidatorConfig
from mesh.peer import PeerID

NOW = 1_800_000_000.0
GENESIS = b"g" * 32
BATCH = 128
RULE = NamespaceRule("k", max_ttl_s=86_400.0)
OPEN = RateConfig(
    records_per_s=1e9, burst_records=1e9, bytes_per_s=1e12, burst_bytes=1e12, failure_cost=0.0, max_failures=10**9,
    checks_per_s=1e9,
)  # fmt: skip


def forged(key_type: KeyType, count: int) -> list[bytes]:
    """Records of one owner whose signature is that of another record: well-formed, and wrong."""
    key = PeerKey.generate(key_type)
    good = [
        sign_record(
            key, b"k/%d" % n, bytes(100), expiry_ms=int((NOW + 3600) * 1000), seq=int(NOW * 1000), subnet_id=1,
            genesis=GENESIS,
        )
        for n in range(count + 1)
    ]  # fmt: skip
    return [dataclasses.replace(a, signature=b.signature).to_bytes() for a, b in itertools.pairwise(good)]


def run(raws: list[bytes], senders: int, per_second: int, seconds: int, rate: RateConfig) -> tuple[float, float, int]:
    """(share of a core, the same after the first second, signatures checked)."""
    checked = 0

    def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
        nonlocal checked
        checked += 1
        return is_signature(public_key, message, signature)

    validator = RecordValidator([RULE], subnet_id=1, genesis=GENESIS, config=ValidatorConfig(rate=rate), verify=verify)
    store = RecordStore(key_of_peer(PeerKey.dev("local").peer_id))
    names = [PeerID(b"\x00\x04" + number.to_bytes(4, "big")) for number in range(senders)]
    each = per_second // senders
    start = time.process_time()
    marks = []
    for second in range(seconds):
        offered = 0
        while offered < per_second:
            count = min(BATCH, max(1, each), per_second - offered)
            sender = names[(offered // count) % senders]
            batch = [raws[(offered + n) % len(raws)] for n in range(count)]
            now = NOW + second + offered / per_second
            offered += count
            try:
                validator.check_sender(sender, now=now)
            except RecordRejected:
                continue
            for raw in batch:
                record = Record.from_bytes(raw)
                try:
                    validator.validate(
                        record, purpose=Purpose.STORE, now=now, is_member=lambda peer: True, sender=sender, held=store
                    )
                except RecordRejected:
                    continue
                raise AssertionError("a forged record passed")
        marks.append(time.process_time() - start)
    return marks[-1] / seconds, (marks[-1] - marks[0]) / max(1, seconds - 1), checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-second", type=int, default=8000)
    parser.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    for key_type in KeyType:
        raws = forged(key_type, 1000 if key_type is not KeyType.RSA else 200)
        for senders in (1, 1000):
            for title, rate in (("unprotected", OPEN), ("protected", RateConfig())):
                seconds = min(options.seconds, 3) if rate is OPEN else options.seconds
                share, later, checked = run(raws, senders, options.per_second, seconds, rate)
                print(
                    f"{key_type.name.lower():9} {senders:5} senders, {title:11}: {100 * share:6.1f} % of a core over "
                    f"{seconds} s, {100 * later:6.1f} % after the first; {checked / seconds:7.1f} checks/s"
                )


if __name__ == "__main__":
    main()
