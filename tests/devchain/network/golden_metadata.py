"""The recorded metadata, decoded by scalecodec: the witness our declaration is compared with."""

from __future__ import annotations

from functools import cache
from typing import Any

from scalecodec.base import RuntimeConfigurationObject, ScaleBytes
from scalecodec.type_registry import load_type_registry_preset

from mesh.devchain.scale import Description, Type

from .chain import GOLDEN


@cache
def decoded() -> tuple[Any, Any]:
    """(scalecodec's configuration with the recorded types, the metadata object)."""
    config = RuntimeConfigurationObject(ss58_format=42, implements_scale_info=True)
    config.update_type_registry(load_type_registry_preset("core"))
    config.update_type_registry(load_type_registry_preset("legacy"))
    raw = (GOLDEN / "hypertensor_v14.hex").read_text().strip()
    metadata = config.create_scale_object("MetadataVersioned", data=ScaleBytes("0x" + raw.removeprefix("0x")))
    metadata.decode()
    config.add_portable_registry(metadata)
    return config, metadata


def network() -> dict[str, Any]:
    """The Network pallet's part of the metadata."""
    (found,) = [each.value for each in decoded()[1].pallets if each.value["name"] == "Network"]
    return dict(found)


@cache
def types() -> dict[int, Any]:
    """Type id to its description."""
    return {each.value["id"]: each.value["type"] for each in decoded()[1].portable_registry["types"]}


def variants(type_id: int) -> dict[str, Any]:
    """Name to variant of an enum type."""
    return {each["name"]: each for each in types()[type_id]["def"]["variant"]["variants"]}


def events(raw: str) -> list[Any]:
    """Decode a recorded System.Events value."""
    config, metadata = decoded()
    (pallet,) = [each for each in metadata.pallets if each.value["name"] == "System"]
    (item,) = [each for each in pallet.storage if each.value["name"] == "Events"]
    reader = config.create_scale_object(item.get_value_type_string(), data=ScaleBytes(raw), metadata=metadata)
    return list(reader.decode(check_remaining=True))


def differences(type_id: int, ours: Type, *, at: str) -> list[str]:
    """Where our type's structure differs from the recorded one."""
    return _differ(type_id, ours, at, set())


def _differ(type_id: int, ours: Type, at: str, seen: set[tuple[int, str]]) -> list[str]:
    if (type_id, ours.ident) in seen:
        return []
    seen.add((type_id, ours.ident))
    theirs = types()[type_id]
    mine: Description = ours.describe()
    (kind,) = theirs["def"]
    body = theirs["def"][kind]
    if kind != mine.kind.lower():
        return [f"{at}: {kind} is declared {mine.kind}"]
    found = []
    if tuple(theirs["path"]) != mine.path:
        found.append(f"{at}: path {theirs['path']} is declared {mine.path}")
    if kind == "primitive":
        return found + ([] if body.lower() == mine.primitive.lower() else [f"{at}: {body} / {mine.primitive}"])
    if kind == "composite":
        return found + _fields(body["fields"], mine.fields, at, seen)
    if kind == "variant":
        theirs_by_name = {each["name"]: each for each in body["variants"]}
        if [(n, v["index"]) for n, v in theirs_by_name.items()] != [(v.name, v.index) for v in mine.variants]:
            return [*found, f"{at}: variants {list(theirs_by_name)} / {[v.name for v in mine.variants]}"]
        for variant in mine.variants:
            inside = theirs_by_name[variant.name]["fields"]
            found += _fields(inside, variant.fields, f"{at}.{variant.name}", seen)
        return found
    ids = body if kind == "tuple" else [body["type"]]
    if len(ids) != len(mine.inner):
        return [*found, f"{at}: {len(ids)} parts / {len(mine.inner)}"]
    if kind == "array" and body["len"] != mine.length:
        found.append(f"{at}: length {body['len']} / {mine.length}")
    for place, (each, inner) in enumerate(zip(ids, mine.inner, strict=True)):
        found += _differ(each, inner, f"{at}[{place}]", seen)
    return found


def _fields(theirs: list[Any], mine: Any, at: str, seen: set[tuple[int, str]]) -> list[str]:
    if [each["name"] for each in theirs] != [each.name for each in mine]:
        return [f"{at}: fields {[e['name'] for e in theirs]} / {[e.name for e in mine]}"]
    found = []
    for each, field in zip(theirs, mine, strict=True):
        found += _differ(each["type"], field.type, f"{at}.{each['name']}", seen)
    return found
