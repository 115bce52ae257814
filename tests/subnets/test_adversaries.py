"""The liar lies as it should: by at least ten points, whatever it measured."""

from __future__ import annotations

import random

from mesh.subnet import load_subnet
from mesh.testing.adversaries import MIN_OVERCLAIM_PPM, overclaim
from subnets.optimization.candidate import DEFAULT
from subnets.optimization.service import Found, OptimizationSubnet, best_found


def test_it_overclaims_by_ten_points_or_says_nothing() -> None:
    rng = random.Random(1)
    for _ in range(500):
        found = sorted(
            (Found(DEFAULT.model_copy(update={"hidden": 8 + n}), rng.randrange(500_000, 1_000_000)) for n in range(5)),
            key=lambda one: -one.ppm,
        )
        lie = overclaim(found)
        if lie is None:
            assert found[-1].ppm > 1_000_000 - MIN_OVERCLAIM_PPM
        else:
            measured = next(one.ppm for one in found if one.candidate == lie.candidate)
            assert lie.ppm - measured >= MIN_OVERCLAIM_PPM
            assert lie.ppm <= 1_000_000
    assert overclaim([]) is None


def test_it_differs_from_the_honest_subnet_in_what_it_states_and_nothing_else() -> None:
    liar, honest = load_subnet("optimization-liar"), load_subnet("optimization")
    assert isinstance(liar, OptimizationSubnet)
    assert isinstance(honest, OptimizationSubnet)
    assert (liar.name, liar.restate) == ("optimization-liar", overclaim)
    assert honest.restate is best_found
    assert liar.score_id == honest.score_id  # it attests and proposes like anybody
    assert liar.jobs == honest.jobs
