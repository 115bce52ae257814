"""One island: an ask/tell optimizer over the unit cube, one candidate at a time. Runs in the compute worker.

The engine is CMA-ES (Hansen, `cma`) with a small population: evaluations are few and noisy. A migrant is measured like
any candidate; only if it beats all the island has seen is it injected into the next generation (Hansen 2011,
"Injecting external solutions into CMA-ES"). What others say of it counts for nothing.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from typing import Final

from subnets.optimization.candidate import DEFAULT, DIMENSIONS, Candidate, from_unit, to_unit

POPULATION: Final = 6
SIGMA: Final = 0.25
"""First step size in the unit cube: a quarter of every axis around the default."""
MAX_WAITING_MIGRANTS: Final = 4


class Island:
    """A running search. `seed` makes it reproducible; `start` is where it begins."""

    def __init__(self, seed: int, start: Candidate = DEFAULT) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cma warns about plotting packages, which no node needs
            import cma

        self._engine = cma.CMAEvolutionStrategy(
            to_unit(start),
            SIGMA,
            {
                "popsize": POPULATION,
                "seed": seed % (2**31 - 2) + 1,
                "bounds": [[0.0] * len(DIMENSIONS), [1.0] * len(DIMENSIONS)],
                "verbose": -9,
                "tolfun": 0,
                "tolfunhist": 0,
                "tolx": 0,
                "tolstagnation": 10**9,
                "tolflatfitness": 10**9,
            },
        )
        self._migrants: deque[Candidate] = deque(maxlen=MAX_WAITING_MIGRANTS)
        self._visitor: Candidate | None = None
        self._immigrant: Candidate | None = None
        self._asked: deque[Sequence[float]] = deque()
        self._told: list[tuple[Sequence[float], float]] = []
        self._best = 0

    def inject(self, migrant: Candidate) -> None:
        """Measure a foreign candidate next; the oldest waiting one gives way when there are too many."""
        self._migrants.append(migrant)

    def ask(self) -> Candidate:
        """The next candidate to measure; answer it with `tell` before asking again."""
        if self._migrants:
            self._visitor = self._migrants.popleft()
            return self._visitor
        if not self._asked:
            if self._immigrant is not None:
                self._engine.inject([to_unit(self._immigrant)])
                self._immigrant = None
            self._asked.extend(self._engine.ask())
        return from_unit(self._asked[0])

    def tell(self, ppm: int) -> None:
        """The measured accuracy of the candidate that was asked last."""
        best, self._best = self._best, max(self._best, ppm)
        if self._visitor is not None:
            if ppm > best:
                # Joins the next generation, not this one; the best only, since cma keeps no more than it asked for.
                self._immigrant = self._visitor
            self._visitor = None
            return
        self._told.append((self._asked.popleft(), -ppm / 1e6))
        if not self._asked:
            self._engine.tell([point for point, _ in self._told], [loss for _, loss in self._told])
            self._told.clear()
