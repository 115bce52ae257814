"""Whole nodes, simulated: the README's echo subnet earns, twice the same for one seed."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import ConfigError
from mesh.node import check_clock
from mesh.testing.village import simulate

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def echo() -> Any:
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    module = types.ModuleType("echo_from_the_readme")
    sys.modules[module.__name__] = module  # models and servicers are found by their module
    exec(compile(found[1], module.__name__, "exec"), module.__dict__)
    return module.subnet


def test_a_clock_behind_the_chain_is_refused() -> None:
    check_clock(1000.0, 1004.0)
    check_clock(2000.0, 1000.0)  # a chain that stands still is not our fault
    with pytest.raises(ConfigError, match="behind"):
        check_clock(1000.0, 1006.0)


def test_every_node_of_the_echo_subnet_earns(echo: Any) -> None:
    result = simulate(echo, nodes=4, epochs=2, seed=1)
    assert result.earned() == {1, 2, 3, 4}
    assert all(count == 4 for count in result.attested.values()), result.attested
    grown = {a.node_id: a.stake_planck - b.stake_planck for a, b in zip(result.after, result.before, strict=True)}
    assert all(planck > 0 for planck in grown.values()), grown


def test_same_seed_same_run(echo: Any) -> None:
    runs = [simulate(echo, nodes=3, epochs=1, seed=seed).trace for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]
