"""What may be stored: strict rules by namespace, cheapest check first, stopping at the first refusal.

The order is size and rate of the sender, namespace (with subnet and genesis), expiry, seq and epoch window,
membership of the owner, quota and duplicate, schema, predicate, signature. Records are checked before they
are stored, before they are returned and before they are cached; a read skips only what is about the moment of
storing: rate, seq, window, quota. Nothing is dropped silently: every refusal is a RecordRejected with a stable
reason, and `explain` runs all checks for people who ask why.

Whether an owner is a member is asked of the chain and may have to wait, which a pure core cannot. So a shell
calls `check_envelope`, waits, and calls `check_content`; who has the answer at hand calls `validate`.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol, TypeVar

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mesh.errors import ConfigError, LocalProtocolError, RecordRejected, RemoteProtocolError
from mesh.identity import MAX_PUBLIC_KEY_BYTES, is_signature
from mesh.kad.equivocation import Equivocation
from mesh.kad.predicates import (
    BlockPosition,
    Judges,
    NoBackdating,
    OncePerEpoch,
    Predicate,
    StoreWindow,
    epoch_of,
    no_backdating,
    once_per_epoch,
    window,
)
from mesh.kad.quota import NO_QUOTA, NamespaceQuota
from mesh.kad.rate import RateConfig, SenderRates
from mesh.kad.record import MAX_SIGNATURE_BYTES, MAX_VALUE_BYTES, Record, Verify, check_sizes
from mesh.peer import PeerID

__all__ = [
    "CLOCK_SLACK_S",
    "OTHER",
    "REASONS",
    "BlockPosition",
    "Held",
    "NamespaceRule",
    "NoBackdating",
    "OncePerEpoch",
    "Predicate",
    "Purpose",
    "RecordValidator",
    "StoreWindow",
    "ValidatorConfig",
    "Verdict",
    "epoch_of",
    "namespace_of",
    "no_backdating",
    "once_per_epoch",
    "pack_value",
    "record_bytes",
    "unpack_value",
    "window",
]

CLOCK_SLACK_S: Final = 10.0
"""How far a record may outlive its namespace's max_ttl_s: twice the 5 s by which a node's clock may be
off."""

_NAMESPACE: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
Model = TypeVar("Model", bound=BaseModel)


REASONS: Final = frozenset(
    {
        "backdated", "duplicate", "expired", "full", "future", "genesis", "key", "namespace", "not-member", "older",
        "quota", "rate", "schema", "signature", "size", "subkey", "subnet", "ttl", "window",
    }
)  # fmt: skip
"""Why the checks of this package refuse. Predicates of subnets have reasons of their own."""
OTHER: Final = "other"
"""What those are counted as: a reason may become a label of a metric, and so must be one of a few."""


def namespace_of(key: bytes) -> str:
    """The part of a key before its first slash. Raises RecordRejected("namespace"), LocalProtocolError when it is not
    bytes."""
    if type(key) is not bytes:
        raise LocalProtocolError(f"a record's key is bytes, not {type(key).__name__}: encode it")
    head, slash, rest = key.partition(b"/")
    if not slash or not rest or not head.isascii():
        raise RecordRejected("namespace", f"key {key!r} is not <namespace>/<rest>")
    return head.decode("ascii")


@dataclass(frozen=True, slots=True)
class NamespaceRule:
    """What records of one namespace must look like."""

    namespace: str
    """The keys are `<namespace>/<rest>`; lower-case letters, digits, `.`, `_`, `-`."""
    schema: type[BaseModel] | None = None
    """The value is `pack_value` of this model; None: any bytes."""
    max_value_bytes: int = MAX_VALUE_BYTES
    max_ttl_s: float = 86_400.0
    max_records_per_owner: int = 64
    """Per key, over all subkeys, tombstones included."""
    predicate: Predicate | Sequence[Predicate] | None = None
    """Asked in order, on the record and the position; `window(...)` is one."""
    quota: NamespaceQuota = NO_QUOTA
    """What a node holds of this namespace, in all and by owner."""
    members_only: bool = True
    """False: anybody may own records here. Open it only where a quota bounds the harm."""

    is_evidence: bool = False
    """Stored at every validator, near or far: never evicted for other records. Bind it to a window."""

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigError(f"namespace {self.namespace!r}: 1 to 32 of a-z 0-9 . _ - starting with a letter or digit")
        if not 0 <= self.max_value_bytes <= MAX_VALUE_BYTES:
            raise ConfigError(f"namespace {self.namespace}: max_value_bytes is 0 to {MAX_VALUE_BYTES}")
        if not self.max_ttl_s > 0 or self.max_records_per_owner < 1:
            raise ConfigError(f"namespace {self.namespace}: max_ttl_s and max_records_per_owner are positive")

    @property
    def predicates(self) -> tuple[Predicate, ...]:
        """The predicates as a tuple."""
        if self.predicate is None:
            return ()
        return (self.predicate,) if callable(self.predicate) else tuple(self.predicate)


# --- values -------------------------------------------------------------------------------------------------


def pack_value(model: BaseModel) -> bytes:
    """A model as the msgpack map of its fields, in their order. Raises LocalProtocolError for what msgpack
    has no form for (sets, integers beyond 64 bits: send those as bytes or text)."""
    try:
        packed = msgpack.packb(model.model_dump(mode="python", round_trip=True), use_bin_type=True, default=_plain)
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalProtocolError(f"{type(model).__name__} cannot be packed: {error}") from error
    assert isinstance(packed, bytes)
    return packed


def unpack_value(model: type[Model], data: bytes) -> Model:
    """The inverse of `pack_value`, and only of it: nothing is coerced, filled in or left out, because what
    does not pack to the same bytes again is refused. Raises RecordRejected("schema")."""
    try:
        fields = msgpack.unpackb(data, use_list=True, strict_map_key=True)
        if type(fields) is not dict or not all(type(name) is str for name in fields):
            raise RecordRejected("schema", f"the value is no map of {model.__name__}'s fields")
        value = model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordRejected("schema", f"{model.__name__}.{where}: {first['msg']}") from error
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise RecordRejected("schema", f"the value is not msgpack: {error}") from error
    try:
        again = pack_value(value)
    except LocalProtocolError as error:
        raise RecordRejected("schema", str(error)) from error
    if again != data:
        raise RecordRejected("schema", f"the value is not {model.__name__} in its canonical form")
    return value


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no msgpack form")


# --- the validator ------------------------------------------------------------------------------------------


class Purpose(enum.Enum):
    """What a record is checked for."""

    STORE = enum.auto()
    READ = enum.auto()


class Held(Protocol):
    """What a store knows about a record before it is let in."""

    def check(
        self, record: Record, *, max_per_owner: int, quota: NamespaceQuota | None = None, sender: PeerID | None = None
    ) -> None:
        """Raises RecordRejected: "duplicate", "older", "quota" or "full"."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of `explain`: `reason` is None when the check passed."""

    check: str
    reason: str | None = None
    detail: str = ""

    def __str__(self) -> str:
        verdict = "ok" if self.reason is None else f"REFUSED ({self.reason}) {self.detail}"
        return f"{self.check}: {verdict}".rstrip()


class ValidatorConfig(BaseModel):
    """Bounds of a RecordValidator."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verified_cache: int = Field(default=4096, ge=0, description="signatures remembered as verified")
    rate: RateConfig = Field(default=RateConfig(), description="what one sender may ask us to store")
    max_seq_ahead_s: float = Field(
        default=3600.0,
        gt=0,
        description="how far a seq, which is its owner's clock, may lie ahead of ours. Much more than clocks differ: a "
        "node that restarts goes on a minute ahead of its last seq, and may restart often",
    )


class RecordValidator:
    """The rules of all namespaces of one subnet on one chain. Holds two bounded caches: sender rates and
    signatures already verified."""

    def __init__(
        self,
        rules: Sequence[NamespaceRule],
        *,
        subnet_id: int,
        genesis: bytes,
        config: ValidatorConfig | None = None,
        verify: Verify = is_signature,
    ) -> None:
        """Raises ConfigError when two rules claim one namespace."""
        self._rules: dict[str, NamespaceRule] = {}
        for rule in rules:
            if rule.namespace in self._rules:
                raise ConfigError(f"two rules for the namespace {rule.namespace!r}: each namespace has one")
            self._rules[rule.namespace] = rule
        self._subnet_id = subnet_id
        self._genesis = genesis
        self._config = config or ValidatorConfig()
        self._verify = verify
        self._rates = SenderRates(self._config.rate)
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._refused = dict.fromkeys(sorted((*REASONS, OTHER)), 0)

    @property
    def refused(self) -> Mapping[str, int]:
        """How many records were refused for each of REASONS, and for OTHER ones."""
        return MappingProxyType(self._refused)

    def check_sender(self, sender: PeerID, *, now: float) -> None:
        """Whether anything of a sender is looked at: asked once per request, before its records are parsed. Raises
        RecordRejected("rate") while it is refused for signatures that failed; that is not counted in `refused`."""
        self._rates.check(sender, now=now)

    def rule(self, key: bytes) -> NamespaceRule:
        """The rule of a key's namespace. Raises RecordRejected("namespace")."""
        name = namespace_of(key)
        rule = self._rules.get(name)
        if rule is None:
            known = ", ".join(sorted(self._rules)) or "none"
            raise RecordRejected("namespace", f"{name!r} is not stored here; namespaces: {known}")
        return rule

    def check_envelope(
        self,
        record: Record,
        *,
        purpose: Purpose,
        now: float,
        position: BlockPosition | None = None,
        sender: PeerID | None = None,
    ) -> None:
        """Size and rate, namespace, expiry, seq and window: all that needs neither chain nor signature. `now` in
        unix seconds; `sender` is who asks us to store it, None for ourselves. Raises RecordRejected."""
        with self._counting():
            self._check_size(record)
            if purpose is Purpose.STORE and sender is not None:
                self._rates.spend(sender, record_bytes(record), now=now)
            self._check_namespace(record)
            self._check_expiry(record, now)
            if purpose is Purpose.STORE:
                self._check_seq(record, now)
                self._check_window(record, position, now)

    def check_content(
        self,
        record: Record,
        *,
        purpose: Purpose,
        member: bool,
        position: BlockPosition | None = None,
        held: Held | None = None,
        sender: PeerID | None = None,
        now: float | None = None,
    ) -> None:
        """Membership, quota and duplicate, schema, predicate, signature; after `check_envelope`.

        `sender` as there, with the same `now`: it is charged for the signature check, and more for one that fails; a
        signature that nobody asked us to check is checked without a budget. Raises RecordRejected, and ValueError for
        a sender without the time.
        """
        if sender is not None and now is None:
            raise ValueError("a sender is charged at a time: pass `now`")
        with self._counting():
            self._check_member(record, member)
            if purpose is Purpose.STORE and held is not None:
                self._check_held(record, held, sender)
            self._check_schema(record)
            self._check_predicates(record, position, purpose)
            self._check_signature(record, sender if purpose is Purpose.STORE else None, now or 0.0)

    def validate(
        self,
        record: Record,
        *,
        purpose: Purpose,
        now: float,
        is_member: Callable[[PeerID], bool],
        position: BlockPosition | None = None,
        sender: PeerID | None = None,
        held: Held | None = None,
    ) -> None:
        """All checks in their order. Raises RecordRejected at the first refusal."""
        self.check_envelope(record, purpose=purpose, now=now, position=position, sender=sender)
        self.check_content(
            record,
            purpose=purpose,
            member=is_member(record.owner),
            position=position,
            held=held,
            sender=sender,
            now=now,
        )

    def check_proof(self, proof: Equivocation) -> None:
        """Whether a proof that another node sent proves what it says, of a record that could be stored here. Raises
        RecordRejected."""
        with self._counting():
            self._check_namespace(proof.first)
            proof.check(self._verify, subnet_id=self._subnet_id, genesis=self._genesis)

    def explain(
        self,
        record: Record,
        *,
        now: float,
        member: bool,
        position: BlockPosition | None = None,
        held: Held | None = None,
    ) -> tuple[Verdict, ...]:
        """What every check says about storing the record now, in their order; charges nobody's rate and counts no
        refusal."""
        checks: tuple[tuple[str, Callable[[], None]], ...] = (
            ("size", lambda: self._check_size(record)),
            ("namespace", lambda: self._check_namespace(record)),
            ("expiry", lambda: self._check_expiry(record, now)),
            ("seq", lambda: self._check_seq(record, now)),
            ("window", lambda: self._check_window(record, position, now)),
            ("membership", lambda: self._check_member(record, member)),
            ("quota", lambda: None if held is None else self._check_held(record, held, None)),
            ("schema", lambda: self._check_schema(record)),
            ("predicate", lambda: self._check_predicates(record, position, Purpose.STORE)),
            ("signature", lambda: self._check_signature(record, None, now)),
        )
        return tuple(_verdict(name, check) for name, check in checks)

    @contextlib.contextmanager
    def _counting(self) -> Iterator[None]:
        try:
            yield
        except RecordRejected as error:
            self._refused[error.reason if error.reason in REASONS else OTHER] += 1
            raise

    # -- one method per check --

    def _check_size(self, record: Record) -> None:
        try:
            check_sizes(record.key, record.subkey, record.value)
        except RemoteProtocolError as error:
            raise RecordRejected("size", str(error)) from error
        if len(record.public_key_pb) > MAX_PUBLIC_KEY_BYTES or len(record.signature) > MAX_SIGNATURE_BYTES:
            raise RecordRejected("size", "its public key or signature is longer than any accepted key's")

    def _check_namespace(self, record: Record) -> None:
        rule = self.rule(record.key)
        if record.genesis != self._genesis:
            raise RecordRejected(
                "genesis",
                f"signed for the chain {record.genesis.hex()[:16]}…, this one is {self._genesis.hex()[:16]}…",
            )
        if record.subnet_id != self._subnet_id:
            raise RecordRejected("subnet", f"signed for subnet {record.subnet_id}, this one is {self._subnet_id}")
        if len(record.value) > rule.max_value_bytes:
            raise RecordRejected(
                "size", f"a value of {len(record.value)} bytes; {rule.namespace} takes {rule.max_value_bytes}"
            )

    def _check_expiry(self, record: Record, now: float) -> None:
        if record.is_expired(now):
            raise RecordRejected("expired", f"{now - record.expiry_ms / 1000:.1f} s ago")
        rule = self.rule(record.key)
        ttl_s = record.expiry_ms / 1000 - now
        if ttl_s > rule.max_ttl_s + CLOCK_SLACK_S:
            raise RecordRejected("ttl", f"would live {ttl_s:.0f} s more; {rule.namespace} takes {rule.max_ttl_s:.0f} s")

    def _check_seq(self, record: Record, now: float) -> None:
        # Else 2**64 - 1 would close its slot for ever, and a wrong clock for as long as it was wrong by.
        ahead_s = record.seq / 1000 - now
        if ahead_s > self._config.max_seq_ahead_s:
            raise RecordRejected(
                "future",
                f"its seq lies {ahead_s:.0f} s ahead, at most {self._config.max_seq_ahead_s:.0f}: whose clock?",
            )

    def _check_window(self, record: Record, position: BlockPosition | None, now: float) -> None:
        for predicate in self.rule(record.key).predicates:
            if isinstance(predicate, StoreWindow):
                predicate.at(record, position, now)

    def _check_held(self, record: Record, held: Held, sender: PeerID | None) -> None:
        rule = self.rule(record.key)
        held.check(record, max_per_owner=rule.max_records_per_owner, quota=rule.quota, sender=sender)

    def _check_member(self, record: Record, member: bool) -> None:
        if not member and self.rule(record.key).members_only:
            raise RecordRejected("not-member", f"its owner {record.owner} is no member of subnet {self._subnet_id}")

    def _check_schema(self, record: Record) -> None:
        schema = self.rule(record.key).schema
        if schema is not None and not record.tombstone:
            unpack_value(schema, record.value)

    def _check_predicates(self, record: Record, position: BlockPosition | None, purpose: Purpose) -> None:
        for predicate in self.rule(record.key).predicates:
            if isinstance(predicate, StoreWindow):
                continue
            try:
                predicate(record, position)
            except RecordRejected as error:
                is_window = error.reason == "window"
                if is_window and purpose is Purpose.READ:
                    continue  # about the moment of storing, whoever says so
                judges_value = getattr(predicate, "judges", Judges.VALUE) is Judges.VALUE
                if record.tombstone and judges_value and not is_window:
                    continue  # there is none
                raise

    def _check_signature(self, record: Record, sender: PeerID | None, now: float) -> None:
        # The digest leaves the signature out, so the cache must not: else known content with a garbage
        # signature would pass here and be refused wherever we pass it on.
        name = hashlib.sha256(record.digest + record.signature).digest()
        if name in self._verified:
            self._verified.move_to_end(name)
            return
        if sender is not None:
            self._rates.spend_check(sender, key_bytes=len(record.public_key_pb), now=now)
        try:
            record.check_signature(self._verify)
        except RecordRejected:
            if sender is not None:
                self._rates.on_bad(sender, now=now)
            raise
        if sender is not None:
            self._rates.on_good(sender)
        self._verified[name] = None
        if len(self._verified) > self._config.verified_cache:
            self._verified.popitem(last=False)


def record_bytes(record: Record) -> int:
    """What a record weighs in rates and stores: its parts and 64 bytes for the fixed ones."""
    return (
        len(record.key)
        + len(record.subkey)
        + len(record.value)
        + len(record.public_key_pb)
        + len(record.signature)
        + 64
    )


def _verdict(name: str, check: Callable[[], None]) -> Verdict:
    try:
        check()
    except RecordRejected as error:
        return Verdict(name, error.reason, error.detail)
    return Verdict(name)
