"""What we declare is what the real runtime has: names, indices, arguments, hashers, defaults, type shapes.

Both metadata are decoded by scalecodec, which none of us wrote. Our codec decodes the recorded metadata too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from scalecodec.base import ScaleBytes

from mesh.devchain import metadata
from mesh.devchain import scale as s
from mesh.devchain.pallet import Pallet, twox
from mesh.devchain.pallets import all_pallets
from mesh.devchain.runtime import Runtime

from . import golden

OUR_OWN = {"Books"}
"""Pallets that the real runtime has not."""
PARTIAL = {"Call", "Event", "RuntimeCall", "RuntimeEvent"}
"""Enums of which we have some variants only."""
EPOCH_LENGTH = 20

PALLETS = [each for each in all_pallets(EPOCH_LENGTH) if each.name not in OUR_OWN]


class View:
    """Decoded metadata, to be looked up by name."""

    def __init__(self, decoded: Any) -> None:
        value = decoded.value[1]["V14"]
        self.types = {each["id"]: each["type"] for each in value["types"]["types"]}
        self.pallets = {each["name"]: each for each in value["pallets"]}
        self.extrinsic = value["extrinsic"]

    def enum(self, pallet: str, part: str) -> dict[str, Any]:
        """Variants by name of a pallet's calls, event or error enum."""
        given = self.pallets[pallet][part]
        return {} if given is None else {v["name"]: v for v in self.types[given["ty"]]["def"]["variant"]["variants"]}


@lru_cache
def ours() -> View:
    return View(golden.decode_foreign(Runtime(epoch_length=EPOCH_LENGTH).metadata)[1])


@lru_cache
def theirs() -> View:
    return View(golden.foreign_registry()[1])


def same_type(mine: int | None, real: int | None) -> None:
    """Assert that two type ids, each in its registry, have one shape."""
    if mine is None or real is None:
        assert mine is real
        return
    a, b = ours().types[mine], theirs().types[real]
    assert a["path"] == b["path"]
    assert [p["name"] for p in a["params"]] == [p["name"] for p in b["params"]]
    for left, right in zip(a["params"], b["params"], strict=True):
        same_type(left["type"], right["type"])
    (kind,) = a["def"]
    assert kind in b["def"]
    x, y = a["def"][kind], b["def"][kind]
    match kind:
        case "primitive":
            assert x == y
        case "tuple":
            assert len(x) == len(y)
            for left, right in zip(x, y, strict=True):
                same_type(left, right)
        case "composite":
            same_fields(x["fields"], y["fields"])
        case "variant":
            real_variants = {v["name"]: v for v in y["variants"]}
            if not (a["path"] and a["path"][-1] in PARTIAL):
                assert {v["name"] for v in x["variants"]} == set(real_variants)
            for variant in x["variants"]:
                assert variant["index"] == real_variants[variant["name"]]["index"]
                same_fields(variant["fields"], real_variants[variant["name"]]["fields"])
        case _:  # sequence, array, compact
            assert x.get("len") == y.get("len")
            same_type(x["type"], y["type"])


def same_fields(mine: list[dict[str, Any]], real: list[dict[str, Any]]) -> None:
    """Assert one shape of fields, names and order."""
    assert [f["name"] for f in mine] == [f["name"] for f in real]
    for left, right in zip(mine, real, strict=True):
        same_type(left["type"], right["type"])


def declared(part: str) -> list[Any]:
    """(pallet, name) of everything declared, as test parameters."""
    found = []
    for pallet in PALLETS:
        names: list[str] = {
            "calls": [call.name for call in pallet.calls],
            "event": list(pallet.event_variants),
            "error": list(pallet.error_indices),
            "storage": [item.name for item in pallet.storage],
            "constants": list(pallet.constants),
        }[part]
        found += [pytest.param(pallet.name, name, id=f"{pallet.name}.{name}") for name in names]
    return found


@golden.needs_golden
@pytest.mark.parametrize("pallet", [each.name for each in PALLETS])
def test_pallet_index(pallet: str) -> None:
    assert ours().pallets[pallet]["index"] == theirs().pallets[pallet]["index"]
    prefix = (ours().pallets[pallet]["storage"] or {}).get("prefix", pallet)
    assert prefix == pallet


@golden.needs_golden
@pytest.mark.parametrize(("pallet", "name"), declared("calls"))
def test_call(pallet: str, name: str) -> None:
    mine, real = ours().enum(pallet, "calls")[name], theirs().enum(pallet, "calls")[name]
    assert mine["index"] == real["index"]
    same_fields(mine["fields"], real["fields"])


@golden.needs_golden
@pytest.mark.parametrize(("pallet", "name"), declared("event"))
def test_event(pallet: str, name: str) -> None:
    mine, real = ours().enum(pallet, "event")[name], theirs().enum(pallet, "event")[name]
    assert mine["index"] == real["index"]
    same_fields(mine["fields"], real["fields"])


@golden.needs_golden
@pytest.mark.parametrize("pallet", [each for each in PALLETS if each.error_indices], ids=lambda each: each.name)
def test_errors(pallet: Pallet) -> None:
    real = {name: v["index"] for name, v in theirs().enum(pallet.name, "error").items()}
    mine = {name: v["index"] for name, v in ours().enum(pallet.name, "error").items()}
    assert mine == real


@golden.needs_golden
@pytest.mark.parametrize(("pallet", "name"), declared("storage"))
def test_storage_item(pallet: str, name: str) -> None:
    def entry(view: View) -> Any:
        return next(e for e in view.pallets[pallet]["storage"]["entries"] if e["name"] == name)

    mine, real = entry(ours()), entry(theirs())
    assert mine["modifier"] == real["modifier"]
    assert list(mine["type"]) == list(real["type"])
    if "Plain" in mine["type"]:
        same_type(mine["type"]["Plain"], real["type"]["Plain"])
    else:
        assert mine["type"]["Map"]["hashers"] == real["type"]["Map"]["hashers"]
        same_type(mine["type"]["Map"]["key"], real["type"]["Map"]["key"])
        same_type(mine["type"]["Map"]["value"], real["type"]["Map"]["value"])
    assert mine["default"] == real["default"]


LEFT_OUT = {
    "System": {"ExtrinsicCount", "InherentsApplied", "BlockWeight", "AllExtrinsicsLen", "ExtrinsicData", "EventTopics",
               "UpgradedToU32RefCount", "UpgradedToTripleRefCount", "ExecutionPhase", "AuthorizedUpgrade"},
    "Balances": {"Account", "Locks", "Reserves", "Holds", "Freezes"},
    "TransactionPayment": {"StorageVersion"},
}  # fmt: skip
"""Storage of pallets we have that a development chain does not keep: weights, upgrades, locks."""
GOVERNANCE = range(77, 163)
"""Calls of the Network pallet that only the network's council may make."""


@golden.needs_golden
@pytest.mark.parametrize("pallet", [each.name for each in PALLETS])
def test_nothing_is_missing_but_what_is_named_here(pallet: str) -> None:
    mine, real = ours().pallets[pallet], theirs().pallets[pallet]
    assert list(ours().enum(pallet, "event")) == list(theirs().enum(pallet, "event"))
    assert [each["name"] for each in mine["constants"]] == [each["name"] for each in real["constants"]]
    names = [each["name"] for each in real["storage"]["entries"]]
    kept = [name for name in names if name not in LEFT_OUT.get(pallet, set())]
    if pallet == "Network":
        assert [each["name"] for each in mine["storage"]["entries"]] == kept  # and in the same order
        missing = set(theirs().enum(pallet, "calls")) - set(ours().enum(pallet, "calls"))
        found = {theirs().enum(pallet, "calls")[name]["index"] for name in missing}
        assert found == set(GOVERNANCE)
    else:
        assert {each["name"] for each in mine["storage"]["entries"]} == set(kept)


@golden.needs_golden
def test_calls_are_listed_by_index() -> None:
    for pallet in PALLETS:
        indices = [call["index"] for call in ours().enum(pallet.name, "calls").values()]
        assert indices == sorted(indices)


STORAGE_VERSION = twox(b":__STORAGE_VERSION__:", 16)
"""Second half of the key under which each real pallet keeps the version of its storage; in no metadata."""


@golden.needs_golden
def test_every_recorded_storage_key_is_one_of_ours_and_its_value_reads() -> None:
    """A whole recorded state: every key is made by our declaration from the keys in it, every value reads and writes
    the same. (System.Events holds events of pallets we have not; it is read elsewhere.)"""
    runtime = Runtime(epoch_length=EPOCH_LENGTH)
    declared_items = {item.prefix: item for pallet in runtime.pallets.values() for item in pallet.storage}
    left_out = {
        twox(pallet.encode(), 16) + twox(name.encode(), 16): f"{pallet}.{name}"
        for pallet, names in LEFT_OUT.items()
        for name in names
    }
    seen: dict[str, int] = {}
    for key, value in golden.end_state().items():
        item = declared_items.get(key[:32])
        if item is None:
            assert key[:32] in left_out or key[16:] == STORAGE_VERSION, key.hex()
            continue
        seen[item.pallet] = seen.get(item.pallet, 0) + 1
        assert item.key(*item.decode_key(key)) == key
        if item is not runtime.events:
            assert item.value.encode(item.value.decode_all(value)) == value, item
    assert seen == {"System": 74, "Timestamp": 1, "Balances": 2, "Network": 94}


CHOSEN_HERE = {"System.Version"}
"""Constants whose value is ours: what we implement, not what the real node does."""


@golden.needs_golden
@pytest.mark.parametrize(("pallet", "name"), declared("constants"))
def test_constant(pallet: str, name: str) -> None:
    def constant(view: View) -> Any:
        return next(e for e in view.pallets[pallet]["constants"] if e["name"] == name)

    mine, real = constant(ours()), constant(theirs())
    same_type(mine["type"], real["type"])
    if f"{pallet}.{name}" not in CHOSEN_HERE:
        assert mine["value"] == real["value"]


@golden.needs_golden
def test_signed_extensions_and_extrinsic_version() -> None:
    mine, real = ours().extrinsic, theirs().extrinsic
    assert mine["version"] == real["version"] == 4
    for left, right in zip(mine["signed_extensions"], real["signed_extensions"], strict=True):
        assert left["identifier"] == right["identifier"]
        same_type(left["ty"], right["ty"])
        same_type(left["additional_signed"], right["additional_signed"])


@golden.needs_golden
def test_our_codec_reads_and_writes_the_real_metadata_byte_for_byte() -> None:
    raw = golden.metadata_bytes()
    assert raw[:5] == metadata.MAGIC + bytes([metadata.VERSION])
    value = metadata.metadata_v14.decode_all(raw[5:])
    assert metadata.metadata_v14.encode(value) == raw[5:]


@golden.needs_golden
def test_recorded_events_decode_as_scalecodec_decodes_them() -> None:
    """Our event types, and those of two real pallets we have not, against every recorded System.Events."""
    who = {"who": s.account_id}
    others = [
        Pallet(
            "Treasury", 19, events={"UpdatedInactive": s.Variant(6, {"reactivated": s.u128, "deactivated": s.u128})}
        ),
        Pallet("AuthorSubsidy", 24, events={"AuthorSubsidy": {**who, "subsidy": s.u128}}),
    ]
    events = Runtime(epoch_length=EPOCH_LENGTH, pallets=[*all_pallets(EPOCH_LENGTH), *others]).events.value
    config, _ = golden.foreign_registry()
    entry = next(e for e in theirs().pallets["System"]["storage"]["entries"] if e["name"] == "Events")
    for recorded in golden.calls():
        raw = bytes.fromhex(recorded["events_hex"][2:])
        mine = events.decode_all(raw)
        assert events.encode(mine) == raw
        foreign = config.create_scale_object(f"scale_info::{entry['type']['Plain']}", ScaleBytes(raw)).decode()
        names = [(e["event"]["module_id"], e["event"]["event_id"]) for e in foreign]
        found = []
        for each in mine:
            ((pallet, content),) = each["event"].items()
            found.append((pallet, content if isinstance(content, str) else next(iter(content))))
        assert found == names


def test_metadata_is_the_same_every_time() -> None:
    assert Runtime(epoch_length=20).metadata == Runtime(epoch_length=20).metadata
    assert Runtime(epoch_length=20).metadata != Runtime(epoch_length=10).metadata


def test_indices_must_be_unique() -> None:
    with pytest.raises(ValueError, match="share an index"):
        Pallet("Demo", 7, events={"A": s.Variant(1), "B": s.Variant(1)})
