"""The pallets of the dev chain, one per file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from mesh.devchain.pallet import Pallet
from mesh.devchain.pallets import balances, books, network, system, timestamp, transaction_payment
from mesh.devchain.pallets.network.storage import DEV_GENESIS

SPEC_VERSION = 1
TRANSACTION_VERSION = 1


def api_id(trait: str) -> bytes:
    """The 8-byte id under which a runtime lists an API: blake2 of the trait's name."""
    return hashlib.blake2b(trait.encode(), digest_size=8).digest()


RUNTIME_VERSION: dict[str, object] = {
    "spec_name": "hypertensor-node",
    "impl_name": "mesh-devchain",
    "authoring_version": 1,
    "spec_version": SPEC_VERSION,
    "impl_version": 1,
    "apis": [
        (api_id("Core"), 5),
        (api_id("Metadata"), 2),
        (api_id("BlockBuilder"), 6),
        (api_id("TaggedTransactionQueue"), 3),
        (api_id("AccountNonceApi"), 1),
        (api_id("TransactionPaymentApi"), 4),
        (api_id("NetworkRuntimeApi"), 1),
    ],
    "transaction_version": TRANSACTION_VERSION,
    "system_version": 1,
}


def all_pallets(epoch_length: int, *, network_genesis: Mapping[str, Any] = DEV_GENESIS) -> list[Pallet]:
    """Every pallet, for a chain whose global epoch is `epoch_length` blocks.

    `network_genesis`: what plain items of the Network pallet hold at block 0 in place of their defaults.
    """
    ledger = balances.BooksLedger(epoch_length)
    return [
        system.pallet(RUNTIME_VERSION),
        timestamp.pallet(),
        balances.pallet(ledger),
        transaction_payment.pallet(),
        network.pallet(epoch_length, genesis=network_genesis),
        books.pallet(),
    ]
