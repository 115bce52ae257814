"""scikit-learn's digits (1797 images of 8x8, bundled with the package), split once by seed.

Node processes get the pool only. The judge set is written to another directory and never given to a node: with it the
demo's client measures what was really gained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mesh.errors import ConfigError

JUDGE_SAMPLES: Final = 300
POOL_FILE: Final = "pool.safetensors"
JUDGE_FILE: Final = "judge.safetensors"
MAX_FILE_BYTES: Final = 1024 * 1024  # 1797 * (64 * 4 + 8) bytes is 474,408


@dataclass(frozen=True, slots=True)
class DataPaths:
    """Where `prepare_data` put the two sets."""

    pool: Path
    """Directory with the training and selection samples: for the nodes."""
    judge: Path
    """Directory with the judge samples: for the demo's client only."""


def prepare_data(directory: Path, seed: int) -> DataPaths:
    """Split the digits by `seed` into a pool (1497) and a judge set (300) and write them under `directory`.

    The same seed gives the same files. Imports numpy and scikit-learn.
    """
    paths = DataPaths(directory / "pool", directory / "judge")
    pixels, classes, order = _digits(seed)
    _write(paths.judge, JUDGE_FILE, pixels[order[:JUDGE_SAMPLES]], classes[order[:JUDGE_SAMPLES]])
    _write(paths.pool, POOL_FILE, pixels[order[JUDGE_SAMPLES:]], classes[order[JUDGE_SAMPLES:]])
    return paths


def prepare_pool(directory: Path, seed: int) -> None:
    """Write only the pool of `seed`, into `directory` itself: for a node that was given no data."""
    pixels, classes, order = _digits(seed)
    _write(directory, POOL_FILE, pixels[order[JUDGE_SAMPLES:]], classes[order[JUDGE_SAMPLES:]])


def _digits(seed: int) -> tuple[Any, Any, Any]:
    """(pixels in 0..1, classes, the order that `seed` gives)."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.data))
    return (digits.data / 16.0).astype(np.float32), digits.target.astype(np.int64), order


def _write(directory: Path, file: str, x: Any, y: Any) -> None:
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{file}"
    save_file({"x": x, "y": y}, temporary)
    os.replace(temporary, directory / file)


def read_arrays(file: Path) -> tuple[Any, Any]:
    """(pixels float32 (n, 64) in 0..1, classes int64 (n,)) as numpy arrays. Raises ConfigError."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{file} is larger than {MAX_FILE_BYTES} bytes: not a data file of prepare_data")
        arrays = load(file.read_bytes())
        x, y = arrays["x"], arrays["y"]
    except (OSError, SafetensorError, KeyError) as error:
        raise ConfigError(f"{file} is no data file of prepare_data: {error}") from error
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != 64 or y.dtype != np.int64 or y.shape != x.shape[:1]:
        raise ConfigError(f"{file}: expected x float32 (n, 64) and y int64 (n,)")
    return x, y
