"""Nodes that break the rules, as subnet objects of their own: a liar is never an `if` in the product.

They are loaded by their entry points like any subnet, run against honest nodes, and must lose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from mesh.subnet import Subnet, load_subnet

OVERCLAIM_PPM: Final = 180_000
MAX_MEASURED_PPM: Final = 835_000
"""What it prefers to lie about: a candidate poor enough for the whole overclaim to stay below 100 %, or nearly."""
MIN_OVERCLAIM_PPM: Final = 100_000
_MILLION: Final = 1_000_000


def overclaim(found: Sequence[Any]) -> Any:
    """States a poor candidate as OVERCLAIM_PPM better than it measured (at most 100 %).

    `found` are the subnet's measured candidates, best first, with a field `ppm`. It takes the best one of at most
    MAX_MEASURED_PPM, or else the worst there is; None when even that leaves no room for MIN_OVERCLAIM_PPM.
    """
    poor = next((one for one in found if one.ppm <= MAX_MEASURED_PPM), found[-1] if found else None)
    if poor is None or poor.ppm + MIN_OVERCLAIM_PPM > _MILLION:
        return None
    return dataclasses.replace(poor, ppm=min(poor.ppm + OVERCLAIM_PPM, _MILLION))


def make_optimization_liar() -> Subnet:
    """The optimization subnet, honest in everything but its claims. Raises ConfigError when it is not installed."""
    liar: Any = load_subnet("optimization")
    replaced: Subnet = dataclasses.replace(liar, name="optimization-liar", restate=overclaim)
    return replaced


def __getattr__(name: str) -> Subnet:
    """`optimization_liar` is made when it is asked for, so that importing this module loads no subnet."""
    if name == "optimization_liar":
        return make_optimization_liar()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
