"""The pallet's declaration against the recorded metadata: names, indices, keys, types, defaults, constants."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.devchain.pallets import network
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.scale import describe_fields
from mesh.errors import ConfigError

from .chain import GOLDEN

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=f"no recorded data at {GOLDEN}")

if GOLDEN.exists():
    from . import golden_metadata as golden


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return golden.network()


def test_storage_items_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    entries = {each["name"]: each for each in recorded["storage"]["entries"]}
    assert list(entries) == [item.name for item in s.ITEMS]
    network.pallet(20)
    for item in s.ITEMS:
        entry = entries[item.name]
        assert (entry["modifier"] == "Optional") == item.optional, item.name
        (kind,) = entry["type"]
        if kind == "Plain":
            assert item.hashed_keys == ()
            value = entry["type"]["Plain"]
        else:
            value = entry["type"]["Map"]["value"]
            key = entry["type"]["Map"]["key"]
            hashers = entry["type"]["Map"]["hashers"]
            assert hashers == [hasher.value for hasher, _ in item.hashed_keys], item.name
            keys = [key] if len(hashers) == 1 else golden.types()[key]["def"]["tuple"]
            for place, (theirs, (_, ours)) in enumerate(zip(keys, item.hashed_keys, strict=True)):
                assert golden.differences(theirs, ours, at=f"{item.name} key {place}") == []
        assert golden.differences(value, item.value, at=item.name) == []
        if not item.optional:
            assert item.default_bytes == _raw(entry["default"]), item.name


def _raw(value: str) -> bytes:
    return bytes.fromhex(value[2:]) if value.startswith("0x") else value.encode()


def test_events_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    theirs = golden.variants(recorded["event"]["ty"])
    ours = network.pallet(20).event_variants
    assert {name: each["index"] for name, each in theirs.items()} == {n: v.index for n, v in ours.items()}
    for name, variant in ours.items():
        fields = describe_fields(variant.fields)
        assert [each["name"] for each in theirs[name]["fields"]] == [each.name for each in fields], name
        for each, field in zip(theirs[name]["fields"], fields, strict=True):
            assert golden.differences(each["type"], field.type, at=f"{name}.{field.name}") == []


def test_errors_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    theirs = golden.variants(recorded["error"]["ty"])
    ours = network.pallet(20).error_indices
    assert len(ours) == 165
    assert {name: each["index"] for name, each in theirs.items()} == ours


def test_declared_calls_are_among_the_recorded_ones(recorded: dict[str, Any]) -> None:
    theirs = golden.variants(recorded["calls"]["ty"])
    ours = network.pallet(20).calls
    assert [call.index for call in ours] == sorted(call.index for call in ours)
    assert {call.index for call in ours} == set(range(77)) | {163, 164}  # all but the council's
    for call in ours:
        fields = theirs[call.name]["fields"]
        assert theirs[call.name]["index"] == call.index
        assert [each["name"] for each in fields] == [name for name, _ in call.args]
        for each, (name, kind) in zip(fields, call.args, strict=True):
            assert golden.differences(each["type"], kind, at=f"{call.name}.{name}") == []
        assert call.fn is not None


def test_constants_are_the_recorded_ones_at_the_recorded_epoch_length(recorded: dict[str, Any]) -> None:
    ours = network.pallet(20).constants
    theirs = {each["name"]: each for each in recorded["constants"]}
    assert set(ours) == set(theirs)
    for name, constant in ours.items():
        assert constant.type.encode(constant.value) == _raw(theirs[name]["value"]), name
        assert golden.differences(theirs[name]["type"], constant.type, at=name) == []


def test_a_wrong_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="epoch_length"):
        network.pallet(3)
    with pytest.raises(ConfigError, match="NoSuchItem"):
        network.pallet(20, genesis={"NoSuchItem": 1})
    with pytest.raises(ConfigError, match="SubnetOwner"):
        network.pallet(20, genesis={"SubnetOwner": 1})
    assert network.pallet(4).constants["EpochsPerYear"].value == 1_314_000
