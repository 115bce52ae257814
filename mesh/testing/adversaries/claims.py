"""Nodes that claim more than they measured, as subnet objects made from honest subnets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

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


def overclaiming(subnet: Any) -> Any:
    """The same subnet, honest in everything but its claims; its name ends in `-liar`.

    `subnet` is a dataclass instance with the fields `name` and `restate`, which makes the claim from what was found
    (see `overclaim`).
    """
    return dataclasses.replace(subnet, name=f"{subnet.name}-liar", restate=overclaim)
