"""Training and measuring a candidate: deterministic functions of (pool, candidate, seeds). Runs in the compute worker.

Everything random comes from torch generators seeded by arguments, on one thread, so two nodes of one kind of machine
get the same bits; other kinds differ in the last ones, which the vote's tolerance covers many times over.
Accuracies are integer parts per million.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F

from subnets.inference.core import CLASSES, Tensors, labels, mlp_digits_forward
from subnets.inference.models import PIXELS
from subnets.optimization.candidate import Candidate
from subnets.optimization.data import POOL_FILE, read_arrays

STEPS: Final = 100
"""Training steps of every candidate. Few enough that the default does not converge and tuning matters."""
VALIDATION: Final = 500
"""Samples of the pool held out by a split; the other 997 are trained on."""
FOLDS: Final = 2
"""Splits that one verification averages over: it cuts the split's noise by about 1.4 for twice the work."""
_BETA2: Final = 0.999
_EPSILON: Final = 1e-8


@dataclass(frozen=True, slots=True)
class Pool:
    """Samples that may be trained and validated on."""

    x: torch.Tensor
    y: torch.Tensor


@functools.lru_cache(maxsize=4)
def load_pool(directory: str) -> Pool:
    """The pool of `prepare_data`. Raises ConfigError."""
    x, y = read_arrays(Path(directory) / POOL_FILE)
    return Pool(torch.from_numpy(x), torch.from_numpy(y))


@dataclass(frozen=True, slots=True)
class Trained:
    """A model and its accuracy on the validation part of its split."""

    model: Tensors
    ppm: int


def seed_of(*parts: bytes | int | str) -> int:
    """A 63-bit seed from anything: sha256 of the parts, each with its length."""
    hasher = hashlib.sha256(b"mesh/optimization/seed/1")
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        hasher.update(len(raw).to_bytes(4, "big") + raw)
    return int.from_bytes(hasher.digest()[:8], "big") >> 1


def split(pool: Pool, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(training rows, validation rows) of the split that `seed` names."""
    order = torch.randperm(len(pool.x), generator=torch.Generator().manual_seed(seed))
    return order[VALIDATION:], order[:VALIDATION]


def accuracy_ppm(model: Tensors, x: torch.Tensor, y: torch.Tensor) -> int:
    """Share of right labels in parts per million, rounded down."""
    return int((labels(model, x) == y).sum()) * 1_000_000 // len(y)


def train(candidate: Candidate, pool: Pool, *, split_seed: int, train_seed: int) -> Trained:
    """Train the classifier for STEPS steps with Adam and decoupled weight decay (Loshchilov & Hutter 2019).

    About 0.1 CPU-s. Written out instead of torch.optim, whose import alone costs more than the training.
    """
    rows, held_out = split(pool, split_seed)
    x, y = pool.x[rows], pool.y[rows]
    rng = torch.Generator().manual_seed(train_seed)
    width, scale = candidate.hidden, candidate.init_permille / 1000
    model: Tensors = {
        "w1": torch.randn(width, PIXELS, generator=rng) * (scale * (2 / PIXELS) ** 0.5),
        "b1": torch.zeros(width),
        "w2": torch.randn(CLASSES, width, generator=rng) * (scale * (1 / width) ** 0.5),
        "b2": torch.zeros(CLASSES),
    }
    parameters = [tensor.requires_grad_() for tensor in model.values()]
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    lr, beta1 = candidate.lr_micro / 1e6, candidate.beta1_permille / 1000
    keep = 1 - lr * candidate.decay_micro / 1e6
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(x), (candidate.batch,), generator=rng)
        loss = F.cross_entropy(
            mlp_digits_forward(model, x[chosen]), y[chosen], label_smoothing=candidate.smoothing_permille / 1000
        )
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(beta1).add_(g, alpha=1 - beta1)
                v.mul_(_BETA2).addcmul_(g, g, value=1 - _BETA2)
                root = (v / (1 - _BETA2**step)).sqrt_().add_(_EPSILON)
                p.mul_(keep).addcdiv_(m, root, value=-lr / (1 - beta1**step))
    model = {name: tensor.detach() for name, tensor in model.items()}
    return Trained(model, accuracy_ppm(model, pool.x[held_out], pool.y[held_out]))


def estimate(candidate: Candidate, pool: Pool, seeds: Sequence[int]) -> int:
    """Mean validation accuracy in ppm over one training per seed, rounded down."""
    total = sum(train(candidate, pool, split_seed=seed, train_seed=seed).ppm for seed in seeds)
    return total // len(seeds)


def fold_seeds(seed: int) -> list[int]:
    """The seeds of the FOLDS trainings that one verification seed stands for."""
    return [seed_of(seed, fold) for fold in range(FOLDS)]


def verify(candidate: Candidate, pool: Pool, seed: int) -> int:
    """What every verifier of a claim computes: the mean over the folds that `seed` names."""
    return estimate(candidate, pool, fold_seeds(seed))


def served_model(candidate: Candidate, pool: Pool) -> Trained:
    """The model that is served for a candidate: trained like any other, with seeds named by the candidate itself."""
    return train(
        candidate,
        pool,
        split_seed=seed_of("served"),
        train_seed=seed_of("served", candidate.digest()),
    )


def score_model(model: Tensors, pool: Pool, seed: int) -> int:
    """Accuracy of given weights on the validation parts that `seed` names, mean in ppm.

    The model may have been trained on part of them, so the mean may lie above a verified score, never far below."""
    total = 0
    seeds = fold_seeds(seed)
    for one in seeds:
        _, held_out = split(pool, one)
        total += accuracy_ppm(model, pool.x[held_out], pool.y[held_out])
    return total // len(seeds)
