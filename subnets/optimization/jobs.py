"""The compute worker's jobs of this subnet: msgpack-able arguments in, msgpack-able results out.

Lives in the worker child. Its only state is the island, which is rebuilt around the best known candidate when the
child was restarted; every other job is a pure function of its arguments and the pool directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mesh.errors import ModelRejected
from subnets.inference.core import dump_model, load_model
from subnets.inference.models import ARCHITECTURE
from subnets.optimization.candidate import DEFAULT, Candidate
from subnets.optimization.core import (
    estimate,
    load_pool,
    score_model,
    seed_of,
    served_model,
    train,
    verify,
)
from subnets.optimization.data import POOL_FILE, prepare_pool
from subnets.optimization.islands import Island

_islands: dict[int, tuple[Island, list[int]]] = {}


def explore(args: dict[str, Any]) -> dict[str, Any]:
    """{pool, island, best, migrants} → {candidate, ppm}: one candidate asked, trained, told.

    `island` is this node's seed, `best` the best candidate it knows, where a fresh island starts; `migrants` are new
    foreign candidates. One training per call (0.1 CPU-s), so that verification never waits longer than that.
    """
    seed = args["island"]
    if seed not in _islands:
        start = Candidate(**args["best"]) if args["best"] else DEFAULT
        _islands.clear()
        _islands[seed] = (Island(seed, start), [0])
    island, count = _islands[seed]
    for migrant in args["migrants"]:
        island.inject(Candidate(**migrant))
    candidate = island.ask()
    count[0] += 1
    one = seed_of("island", seed, count[0], candidate.digest())
    ppm = train(candidate, load_pool(args["pool"]), split_seed=one, train_seed=one).ppm
    island.tell(ppm)
    return {"candidate": candidate.model_dump(), "ppm": ppm}


def pool(args: dict[str, Any]) -> dict[str, Any]:
    """{directory, seed} → {}: write the pool of `seed` there, unless there is one. Never the judge set."""
    directory = Path(args["directory"])
    if not (directory / POOL_FILE).exists():
        prepare_pool(directory, args["seed"])
    return {}


def measure(args: dict[str, Any]) -> dict[str, Any]:
    """{pool, candidate, seed, splits} → {ppm}: a candidate's mean over `splits` fresh splits named by `seed`."""
    seeds = [seed_of("measure", args["seed"], number) for number in range(args["splits"])]
    return {"ppm": estimate(Candidate(**args["candidate"]), load_pool(args["pool"]), seeds)}


def judge(args: dict[str, Any]) -> dict[str, Any]:
    """{pool, candidate, incumbent, seed} → {candidate_ppm, incumbent_ppm}: what a verifier votes. Both are trained
    on the same splits with the same seeds, so that their difference is less noisy than either."""
    samples = load_pool(args["pool"])
    return {
        "candidate_ppm": verify(Candidate(**args["candidate"]), samples, args["seed"]),
        "incumbent_ppm": verify(Candidate(**args["incumbent"]), samples, args["seed"]),
    }


def serve(args: dict[str, Any]) -> dict[str, Any]:
    """{pool, candidate} → {model, ppm}: the weights that are served for a candidate, the same on every machine of a
    kind, and their accuracy on the split they were not trained on."""
    trained = served_model(Candidate(**args["candidate"]), load_pool(args["pool"]))
    return {"model": dump_model(trained.model), "ppm": trained.ppm}


def check(args: dict[str, Any]) -> dict[str, Any]:
    """{pool, candidate, model, seed, verified_ppm, tolerance_ppm} → {ppm}: foreign weights, checked and scored.

    Raises ModelRejected when the file is not what the candidate says, or scores more than the tolerance below what
    the quorum verified. Better than verified is no fault: the weights may have seen part of that split in training.
    """
    candidate = Candidate(**args["candidate"])
    model = load_model(args["model"], architecture=ARCHITECTURE, width=candidate.hidden)
    ppm = score_model(model, load_pool(args["pool"]), args["seed"])
    if ppm < args["verified_ppm"] - args["tolerance_ppm"]:
        raise ModelRejected(
            f"the weights score {ppm} ppm where the quorum verified {args['verified_ppm']} "
            f"± {args['tolerance_ppm']}: they are not the candidate's"
        )
    return {"ppm": ppm}


def score(args: dict[str, Any]) -> dict[str, Any]:
    """{pool, model, architecture, width, seed} → {ppm}: what a model is worth on the splits that `seed` names. Raises
    ModelRejected."""
    model = load_model(args["model"], architecture=args["architecture"], width=args["width"])
    return {"ppm": score_model(model, load_pool(args["pool"]), args["seed"])}
