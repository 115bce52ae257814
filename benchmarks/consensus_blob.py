"""What does judging the largest epoch cost? 256 validators whose inventories all name as many records as fit one.

python benchmarks/consensus_blob.py [--validators N] [--records N] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from typing import TypeVar

from mesh.chain.types import BlockRef, NodeClass, Snapshot, SubnetNode
from mesh.consensus.round import (
    MAX_DIGESTS,
    InventoryBook,
    RoundContext,
    checks,
    choose,
    decode_blob,
    encode_blob,
    evidence_of,
    inventory_key,
    inventory_of,
    make_blob,
    timeless_validator,
)
from mesh.content import digest_of
from mesh.identity import PeerKey
from mesh.kad.record import Record, sign_record
from mesh.kad.validator import pack_value
from mesh.testing.consensus_sim import TallyConfig, TallySubnet, piece

T = TypeVar("T")
GENESIS = bytes(32)
EPOCH = 3
SUBNET_ID = 128_001


def signed(key: PeerKey, name: bytes, value: bytes, subkey: bytes = b"") -> Record:
    return sign_record(
        key, name, value, subkey=subkey, expiry_ms=1_800_000_000_000, seq=1, subnet_id=SUBNET_ID, genesis=GENESIS
    )


def context(keys: list[PeerKey]) -> RoundContext:
    subnet = TallySubnet()
    nodes = tuple(
        SubnetNode(
            node_id=number,
            coldkey=number.to_bytes(20, "big"),
            hotkey=(10_000 + number).to_bytes(20, "big"),
            peer_id=key.peer_id,
            bootnode_peer_id=None,
            client_peer_id=None,
            node_class=NodeClass.VALIDATOR,
            start_epoch=0,
            stake_planck=10**20,
            reputation=10**18,
        )
        for number, key in enumerate(keys, start=1)
    )
    return RoundContext(
        genesis=GENESIS,
        subnet_id=SUBNET_ID,
        epoch=EPOCH,
        snapshot=Snapshot(SUBNET_ID, BlockRef(60, bytes(32)), nodes),
        evidence_keys=frozenset(subnet.evidence_keys(EPOCH)),
        score_id=subnet.score_id,
        validator=timeless_validator(subnet.rules(TallyConfig()), subnet_id=SUBNET_ID, genesis=GENESIS),
    )


def main(validators: int, count: int) -> dict[str, float]:
    """CPU milliseconds of each step, and the blob's MB."""
    keys = [PeerKey.dev(f"blob {number}") for number in range(validators)]
    ctx = context(keys)
    made = [piece(EPOCH, number) for number in range(count)]
    records = [
        signed(keys[number % validators], name, value, subkey=b"%d" % number)
        for number, (name, _, value) in enumerate(made)
    ]
    value = pack_value(inventory_of(sorted(records, key=lambda r: r.digest), ctx))
    inventories = [signed(key, inventory_key(EPOCH), value) for key in keys]
    costs: dict[str, float] = {}

    def timed(name: str, step: Callable[[], T]) -> T:
        began = time.process_time()
        done = step()
        costs[name] = round(1000 * (time.process_time() - began), 1)
        return done

    data = timed("encode", lambda: encode_blob(make_blob(inventories, records)))
    timed("digest", lambda: digest_of(data))
    blob = timed("decode", lambda: decode_blob(data))
    timed("check signatures and forms", lambda: sum(1 for _ in checks(blob, ctx)))
    timed("evidence", lambda: evidence_of(blob, ctx))
    book = InventoryBook(ctx)
    timed("take inventories in", lambda: [book.add(record) for record in inventories])
    standing = {owner: inventory for owner, (_, inventory) in book.valid().items()}
    held = {record.digest for record in records}
    timed("choose", lambda: choose(standing, held=held, limits=ctx.thresholds))
    return {"blob_mb": round(len(data) / 1e6, 1), **costs}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validators", type=int, default=256)
    parser.add_argument("--records", type=int, default=MAX_DIGESTS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = main(options.validators, options.records)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
        print(
            f"{options.validators} validators, {options.records} records, a blob of {found.pop('blob_mb')} MB; CPU-ms:"
        )
        for name, cost in found.items():
            print(f"  {name:<28}{cost:>8}")
