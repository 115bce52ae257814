"""What every installed subnet must keep: over all entry points of the group mesh.subnets."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import entry_points
from typing import Any

import pytest
from pydantic import BaseModel

from mesh.errors import ConfigError
from mesh.kad.validator import NamespaceRule, namespace_of
from mesh.subnet import GROUP, Evidence, installed_subnets, load_subnet
from tests.subnets.evidence import DRAW, EPOCH, GENESIS, SUBNET, Case, snapshot_of

NAMES = [name for name in installed_subnets() if entry_points(group=GROUP)[name].dist.name == "mesh-subnets"]  # type: ignore[union-attr]
CONFIGS: dict[str, dict[str, Any]] = {"inference": {"model": "/absent", "width": 16}}


@pytest.fixture(params=NAMES)
def subnet(request: pytest.FixtureRequest) -> Any:
    return load_subnet(request.param)


def config_of(subnet: Any) -> BaseModel:
    return subnet.Config(**CONFIGS.get(subnet.name, {}))


def test_they_are_all_here() -> None:
    assert {"evaluation", "inference", "mock", "optimization", "optimization-liar"} <= set(NAMES)
    with pytest.raises(ConfigError, match="there is no subnet 'nothing'"):
        load_subnet("nothing")


def test_the_name_is_the_entry_point_s(request: pytest.FixtureRequest, subnet: Any) -> None:
    assert subnet.name == request.node.callspec.params["subnet"]
    name, _, version = subnet.score_id.partition("/")
    assert name
    assert len(version.split(".")) == 3


def test_the_config_is_frozen_and_refuses_unknown_fields(subnet: Any) -> None:
    assert subnet.Config.model_config.get("frozen")
    assert subnet.Config.model_config.get("extra") == "forbid"
    for field in subnet.Config.model_fields.values():
        assert field.description or isinstance(field.default, BaseModel)


def test_evidence_keys_are_covered_by_rules(subnet: Any) -> None:
    rules = subnet.rules(config_of(subnet))
    assert all(isinstance(rule, NamespaceRule) and rule.members_only for rule in rules)
    named = {rule.namespace: rule for rule in rules}
    for key in subnet.evidence_keys(EPOCH):
        assert named[namespace_of(key)].schema is not None
        assert named[namespace_of(key)].predicates  # nothing becomes evidence outside its window


def test_score_is_pure_deterministic_and_deaf_to_garbage(subnet: Any) -> None:
    case = Case(snapshot_of(4))
    for key in subnet.evidence_keys(EPOCH):
        for node, value in ((1, b""), (2, b"\xff\x00"), (3, b"\x80"), (9, b"\xc1")):
            case.add(node, namespace_of(key), value)
            case.add(node, namespace_of(key), value, subkey=b"x" * 32)
    assert list(subnet.score(case.evidence())) == list(subnet.score(case.evidence())) == []
    nothing = Evidence(EPOCH, SUBNET, GENESIS, snapshot_of(4), DRAW, ())
    assert list(subnet.score(nothing)) == []


def test_jobs_name_functions_that_exist(subnet: Any) -> None:
    from importlib import import_module

    for path in getattr(subnet, "jobs", {}).values():
        module, _, function = path.partition(":")
        assert callable(getattr(import_module(module), function))


def test_no_score_module_computes_with_floats() -> None:
    from subnets.evaluation import score as evaluation
    from subnets.evaluation import votes
    from subnets.inference import score as inference
    from subnets.optimization import score as optimization

    for module in (evaluation, votes, inference, optimization):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), module.__name__
            assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)), module.__name__
