"""Pallet System: accounts, events, block hashes. Declared as in the real runtime's metadata."""

from __future__ import annotations

import hashlib

from mesh.devchain import scale as s
from mesh.devchain.pallet import Call, Constant, Context, DispatchOther, Hasher, Pallet, StorageItem

BLOCK_HASH_COUNT = 256
"""Blocks whose hash stays in storage; an era whose birth is older is refused."""

NEW_ACCOUNT_FLAGS = 1 << 127
"""`ExtraFlags` of an account: "new logic", as every account made by a current runtime has."""

BASE_WEIGHT = {"ref_time": 108_157_000, "proof_size": 0}
"""Weight of every user extrinsic, as recorded from the real runtime."""

weight = s.struct("sp_weights::weight_v2::Weight", ref_time=s.compact(s.u64), proof_size=s.compact(s.u64))
account_data = s.Struct(
    "pallet_balances::types::AccountData",
    {
        "free": s.u128,
        "reserved": s.u128,
        "frozen": s.u128,
        "flags": s.newtype("pallet_balances::types::ExtraFlags", s.u128),
    },
    params=(("Balance", s.u128),),
)
account_info = s.Struct(
    "frame_system::AccountInfo",
    {"nonce": s.u32, "consumers": s.u32, "providers": s.u32, "sufficients": s.u32, "data": account_data},
    params=(("Nonce", s.u32), ("AccountData", account_data)),
)
dispatch_class = s.enum("frame_support::dispatch::DispatchClass", Normal=None, Operational=None, Mandatory=None)
pays = s.enum("frame_support::dispatch::Pays", Yes=None, No=None)
dispatch_info = s.Struct(
    "frame_system::DispatchEventInfo", {"weight": weight, "class": dispatch_class, "pays_fee": pays}
)
token_error = s.enum(
    "sp_runtime::TokenError",
    FundsUnavailable=None,
    OnlyProvider=None,
    BelowMinimum=None,
    CannotCreate=None,
    UnknownAsset=None,
    Frozen=None,
    Unsupported=None,
    CannotCreateHold=None,
    NotExpendable=None,
    Blocked=None,
)
dispatch_error = s.enum(
    "sp_runtime::DispatchError",
    Other=None,
    CannotLookup=None,
    BadOrigin=None,
    Module=s.struct("sp_runtime::ModuleError", index=s.u8, error=s.array_u8(4)),
    ConsumerRemaining=None,
    NoProviders=None,
    TooManyConsumers=None,
    Token=token_error,
    Arithmetic=s.enum("sp_arithmetic::ArithmeticError", Underflow=None, Overflow=None, DivisionByZero=None),
    Transactional=s.enum("sp_runtime::TransactionalError", LimitReached=None, NoLayer=None),
    Exhausted=None,
    Corruption=None,
    Unavailable=None,
    RootNotAllowed=None,
    Trie=s.enum(
        "sp_runtime::proving_trie::TrieError",
        InvalidStateRoot=None,
        IncompleteDatabase=None,
        ValueAtIncompleteKey=None,
        DecoderError=None,
        InvalidHash=None,
        DuplicateKey=None,
        ExtraneousNode=None,
        ExtraneousValue=None,
        ExtraneousHashReference=None,
        InvalidChildReference=None,
        ValueMismatch=None,
        IncompleteProof=None,
        RootMismatch=None,
        DecodeError=None,
    ),
)
phase = s.enum("frame_system::Phase", ApplyExtrinsic=s.u32, Finalization=None, Initialization=None)
digest = s.struct(
    "sp_runtime::generic::digest::Digest",
    logs=s.vec(
        s.enum(
            "sp_runtime::generic::digest::DigestItem",
            PreRuntime=s.Variant(6, (s.array_u8(4), s.bytes_)),
            Consensus=s.Variant(4, (s.array_u8(4), s.bytes_)),
            Seal=s.Variant(5, (s.array_u8(4), s.bytes_)),
            Other=s.Variant(0, s.bytes_),
            RuntimeEnvironmentUpdated=s.Variant(8),
        )
    ),
)
cow_str = s.Newtype("Cow", s.text, params=(("T", s.text),))
_apis = s.vec(s.tuple_of(s.array_u8(8), s.u32))
runtime_version = s.struct(
    "sp_version::RuntimeVersion",
    spec_name=cow_str,
    impl_name=cow_str,
    authoring_version=s.u32,
    spec_version=s.u32,
    impl_version=s.u32,
    apis=s.Newtype("Cow", _apis, params=(("T", _apis),)),
    transaction_version=s.u32,
    system_version=s.u8,
)
last_runtime_upgrade = s.struct(
    "frame_system::LastRuntimeUpgradeInfo", spec_version=s.compact(s.u32), spec_name=cow_str
)

_per_class = s.Struct(
    "frame_support::dispatch::PerDispatchClass",
    {"normal": s.u32, "operational": s.u32, "mandatory": s.u32},
    params=(("T", s.u32),),
)
_class_limits = s.struct(
    "frame_system::limits::WeightsPerClass",
    base_extrinsic=weight,
    max_extrinsic=s.option(weight),
    max_total=s.option(weight),
    reserved=s.option(weight),
)
_block_weights = s.struct(
    "frame_system::limits::BlockWeights",
    base_block=weight,
    max_block=weight,
    per_class=s.Struct(
        "frame_support::dispatch::PerDispatchClass",
        {"normal": _class_limits, "operational": _class_limits, "mandatory": _class_limits},
        params=(("T", _class_limits),),
    ),
)

_ACCOUNT_DEFAULT = {
    **account_info.zero(),
    "data": {**account_data.zero(), "flags": NEW_ACCOUNT_FLAGS},
}

ACCOUNT = StorageItem(
    "Account",
    value=account_info,
    keys=((Hasher.BLAKE2_128_CONCAT, s.account_id),),
    default=_ACCOUNT_DEFAULT,
)
BLOCK_HASH = StorageItem("BlockHash", value=s.h256, keys=((Hasher.TWOX64_CONCAT, s.u32),))
NUMBER = StorageItem("Number", value=s.u32)
PARENT_HASH = StorageItem("ParentHash", value=s.h256)
DIGEST = StorageItem("Digest", value=digest)
EVENT_COUNT = StorageItem("EventCount", value=s.u32)
LAST_RUNTIME_UPGRADE = StorageItem("LastRuntimeUpgrade", value=last_runtime_upgrade, optional=True)


def event_record(runtime_event: s.Type) -> s.Type:
    """`EventRecord<RuntimeEvent, Hash>`."""
    return s.Struct(
        "frame_system::EventRecord",
        {"phase": phase, "event": runtime_event, "topics": s.vec(s.h256)},
        params=(("E", runtime_event), ("T", s.h256)),
    )


def events_item(record: s.Type) -> StorageItem:
    """`System.Events`; its type holds every pallet's events, so the runtime makes it."""
    return StorageItem("Events", value=s.vec(record))


def _remark(ctx: Context, origin: bytes, remark: bytes) -> None:
    """Do nothing, on the record."""


def _remark_with_event(ctx: Context, origin: bytes, remark: bytes) -> None:
    ctx.emit("Remarked", sender=origin, hash=hashlib.blake2b(remark, digest_size=32).digest())


def _root_only(ctx: Context, origin: bytes, **args: object) -> None:
    raise DispatchOther("BadOrigin")  # no account is root; the author's own are applied by the runtime


def _weight(ref_time: int, proof_size: int) -> dict[str, int]:
    return {"ref_time": ref_time, "proof_size": proof_size}


# The real runtime's limits, as its metadata gives them. Nothing here weighs calls: blocks are bounded by the pool.
_BLOCK_WEIGHTS: dict[str, object] = {
    "base_block": _weight(431_614_000, 0),
    "max_block": _weight(2 * 10**12, 2**64 - 1),
    "per_class": {
        "normal": {
            "base_extrinsic": BASE_WEIGHT,
            "max_extrinsic": _weight(1_299_891_843_000, 11_990_383_647_911_208_550),
            "max_total": _weight(1_500_000_000_000, 13_835_058_055_282_163_711),
            "reserved": _weight(0, 0),
        },
        "operational": {
            "base_extrinsic": BASE_WEIGHT,
            "max_extrinsic": _weight(1_799_891_843_000, 16_602_069_666_338_596_454),
            "max_total": _weight(2 * 10**12, 2**64 - 1),
            "reserved": _weight(500_000_000_000, 2**62),
        },
        "mandatory": {"base_extrinsic": BASE_WEIGHT, "max_extrinsic": None, "max_total": None, "reserved": None},
    },
}


def pallet(version: dict[str, object]) -> Pallet:
    """The declaration. `version` is the runtime's version as a `RuntimeVersion` value."""
    return Pallet(
        "System",
        0,
        storage=[
            ACCOUNT,
            BLOCK_HASH,
            NUMBER,
            PARENT_HASH,
            DIGEST,
            EVENT_COUNT,
            LAST_RUNTIME_UPGRADE,
        ],
        calls=[
            Call(0, "remark", (("remark", s.bytes_),), _remark),
            Call(4, "set_storage", (("items", s.vec(s.tuple_of(s.bytes_, s.bytes_))),), _root_only),
            Call(5, "kill_storage", (("keys", s.vec(s.bytes_)),), _root_only),
            Call(7, "remark_with_event", (("remark", s.bytes_),), _remark_with_event),
        ],
        events={
            "ExtrinsicSuccess": {"dispatch_info": dispatch_info},
            "ExtrinsicFailed": {"dispatch_error": dispatch_error, "dispatch_info": dispatch_info},
            "CodeUpdated": None,
            "NewAccount": {"account": s.account_id},
            "KilledAccount": {"account": s.account_id},
            "Remarked": {"sender": s.account_id, "hash": s.h256},
            "UpgradeAuthorized": {"code_hash": s.h256, "check_version": s.boolean},
        },
        errors=[
            "InvalidSpecName",
            "SpecVersionNeedsToIncrease",
            "FailedToExtractRuntimeVersion",
            "NonDefaultComposite",
            "NonZeroRefCount",
            "CallFiltered",
            "MultiBlockMigrationsOngoing",
            "NothingAuthorized",
            "Unauthorized",
        ],
        constants={
            "BlockWeights": Constant(_block_weights, _BLOCK_WEIGHTS),
            "BlockLength": Constant(
                s.struct("frame_system::limits::BlockLength", max=_per_class),
                {"max": {"normal": 5 * 2**20 * 3 // 4, "operational": 5 * 2**20, "mandatory": 5 * 2**20}},
            ),
            "BlockHashCount": Constant(s.u32, BLOCK_HASH_COUNT),
            "DbWeight": Constant(
                s.struct("sp_weights::RuntimeDbWeight", read=s.u64, write=s.u64),
                {"read": 25_000_000, "write": 100_000_000},
            ),
            "Version": Constant(runtime_version, version),
            "SS58Prefix": Constant(s.u16, 42),
        },
    )
