"""One epoch's agreement, as functions of values. PURE. All of it under one name; the ideas are in files of their own.

    wire         inventories, refusals, args and blobs: their forms and encodings
    storing      when inventories and refusals may be stored
    context      what is known about an epoch, and which records count in it
    inventories  who names what, and the evidence that follows
    judging      whether a proposal is right

Every validator signs an inventory: the digests of the valid records it holds when the epoch ends. The elected proposer
gathers n-f of them; the evidence is exactly the records that f+1 of these name. Inventories and records travel in one
blob, so whoever holds the blob and the epoch's snapshot computes the same scores, and nobody needs to be believed.

What remains with the proposer is which n-f inventories it takes (mesh/README.md says so). A record that every honest
validator names is in whatever it takes; one that no honest validator names never is.
"""

from mesh.consensus.context import (
    RoundContext,
    Thresholds,
    check_inventory,
    check_record,
    thresholds,
)
from mesh.consensus.inventories import (
    Added,
    Choice,
    InventoryBook,
    choose,
    inventory_of,
    make_inventory,
    named,
    select_records,
)
from mesh.consensus.judging import (
    ABSTENTIONS,
    Decision,
    Judgement,
    checks,
    collapsed,
    eligible,
    evidence_of,
    judge_empty,
    judge_scores,
    judgement_of,
    read_proposal,
    verify_blob,
)
from mesh.consensus.storing import (
    MAX_TTL_S,
    inventory_rule,
    refusal_rule,
    timeless_validator,
)
from mesh.consensus.wire import (
    DIGEST_BYTES,
    INVENTORY,
    MAX_BLOB_BYTES,
    MAX_BLOB_INVENTORIES,
    MAX_BLOB_RECORDS,
    MAX_DETAIL,
    MAX_DIGESTS,
    MAX_EVIDENCE_BYTES,
    MAX_INVENTORY_RECORD_BYTES,
    REFUSAL,
    TOO_FEW_INVENTORIES,
    VERSION,
    Blob,
    Digest,
    DigestOrNone,
    Inventory,
    ProposalArgs,
    Refusal,
    decode_args,
    decode_blob,
    encode_args,
    encode_blob,
    inventory_key,
    make_blob,
    refusal_key,
)

__all__ = [
    "ABSTENTIONS",
    "DIGEST_BYTES",
    "INVENTORY",
    "MAX_BLOB_BYTES",
    "MAX_BLOB_INVENTORIES",
    "MAX_BLOB_RECORDS",
    "MAX_DETAIL",
    "MAX_DIGESTS",
    "MAX_EVIDENCE_BYTES",
    "MAX_INVENTORY_RECORD_BYTES",
    "MAX_TTL_S",
    "REFUSAL",
    "TOO_FEW_INVENTORIES",
    "VERSION",
    "Added",
    "Blob",
    "Choice",
    "Decision",
    "Digest",
    "DigestOrNone",
    "Inventory",
    "InventoryBook",
    "Judgement",
    "ProposalArgs",
    "Refusal",
    "RoundContext",
    "Thresholds",
    "check_inventory",
    "check_record",
    "checks",
    "choose",
    "collapsed",
    "decode_args",
    "decode_blob",
    "eligible",
    "encode_args",
    "encode_blob",
    "evidence_of",
    "inventory_key",
    "inventory_of",
    "inventory_rule",
    "judge_empty",
    "judge_scores",
    "judgement_of",
    "make_blob",
    "make_inventory",
    "named",
    "read_proposal",
    "refusal_key",
    "refusal_rule",
    "select_records",
    "thresholds",
    "timeless_validator",
    "verify_blob",
]
