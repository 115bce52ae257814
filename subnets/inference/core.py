"""Models that may be served, and how they answer. Runs in the compute worker: the only place here that imports torch.

A model travels as safetensors bytes together with its architecture's name and width. Nothing of it is believed: the
size is bounded before parsing, the architecture is one of a short list, names, shapes and types must be exactly the
architecture's, and every number finite. There is no pickle anywhere.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save

from mesh.errors import ModelRejected
from subnets.inference.models import ARCHITECTURE, MAX_MODEL_BYTES, PIXELS

torch.set_num_threads(1)  # more threads than cores per node only fight each other, and one gives the same bits

Tensors = dict[str, torch.Tensor]

CLASSES: Final = 10
MIN_WIDTH: Final = 8
MAX_WIDTH: Final = 128
MAX_BATCH: Final = 4096
_MIN_ROWS: Final = 4  # matrix products of 1 to 3 rows use other kernels and round differently: pad, so that the
# answer does not depend on who else was in the batch
_MODELS_KEPT: Final = 4


def mlp_digits_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Parameters of `mlp-digits-1`: 64 pixels, one hidden ReLU layer of `width`, 10 classes."""
    return {"w1": (width, PIXELS), "b1": (width,), "w2": (CLASSES, width), "b2": (CLASSES,)}


def mlp_digits_forward(model: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Logits (n, 10) of `mlp-digits-1` for (n, 64) pixels in 0..1."""
    return F.linear(F.relu(F.linear(x, model["w1"], model["b1"])), model["w2"], model["b2"])


ARCHITECTURES: Final[Mapping[str, Callable[[int], dict[str, tuple[int, ...]]]]] = {ARCHITECTURE: mlp_digits_shapes}


def dump_model(tensors: Tensors) -> bytes:
    """safetensors bytes, without metadata: the same tensors give the same bytes, hence the same digest."""
    data: bytes = save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())})
    return data


def load_model(data: bytes, *, architecture: str, width: int) -> Tensors:
    """Parse and check a model file. Raises ModelRejected with the reason: the sender's fault."""
    if len(data) > MAX_MODEL_BYTES:
        raise ModelRejected(f"a model of {len(data)} bytes; at most {MAX_MODEL_BYTES} are accepted")
    shapes_of = ARCHITECTURES.get(architecture)
    if shapes_of is None:
        raise ModelRejected(f"architecture {architecture!r} is none of {', '.join(sorted(ARCHITECTURES))}")
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise ModelRejected(f"{architecture} has a width of {MIN_WIDTH} to {MAX_WIDTH}, not {width}")
    shapes = shapes_of(width)
    try:
        tensors: Tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        # KeyError and its kin: dtypes that safetensors knows and this torch does not
        raise ModelRejected(f"not a safetensors file: {error}") from error
    if tensors.keys() != shapes.keys():
        raise ModelRejected(f"{architecture} has tensors {sorted(shapes)}, the file has {sorted(tensors)[:8]}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
            raise ModelRejected(
                f"{architecture} of width {width}: {name} is float32 {shape}, "
                f"the file has {tensor.dtype} {tuple(tensor.shape)}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ModelRejected(f"{architecture}: {name} holds numbers that are not finite")
    return tensors


def labels(model: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The most likely class of each row, padded so that the batch's size changes nothing."""
    rows = x.shape[0]
    if rows < _MIN_ROWS:
        x = torch.cat([x, x.new_zeros(_MIN_ROWS - rows, x.shape[1])])
    with torch.no_grad():
        return mlp_digits_forward(model, x)[:rows].argmax(dim=1)


def device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_loaded: OrderedDict[bytes, Tensors] = OrderedDict()


def predict(args: dict[str, Any]) -> dict[str, Any]:
    """Worker job: {model, architecture, width, inputs, rows} → {labels, device}.

    `inputs` are rows * 64 little-endian float32. Raises ModelRejected.
    """
    where = device()
    key = hashlib.sha256(f"{args['architecture']}/{args['width']}/".encode() + args["model"]).digest()
    if key not in _loaded:
        model = load_model(args["model"], architecture=args["architecture"], width=args["width"])
        _loaded[key] = {name: tensor.to(where) for name, tensor in model.items()}
        while len(_loaded) > _MODELS_KEPT:
            _loaded.popitem(last=False)
    _loaded.move_to_end(key)
    x = torch.frombuffer(bytearray(args["inputs"]), dtype=torch.float32).reshape(args["rows"], PIXELS)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    found = labels(_loaded[key], x.to(where)).cpu().tolist()
    return {"labels": found, "device": f"cuda ({name})" if where.type == "cuda" else name}


PROBE_ROWS: Final = 64


def check(args: dict[str, Any]) -> dict[str, Any]:
    """Worker job: {model, architecture, width} → {}. Raises ModelRejected."""
    load_model(args["model"], architecture=args["architecture"], width=args["width"])
    return {}


def probe(args: dict[str, Any]) -> dict[str, Any]:
    """Worker job: {model, architecture, width, seed} → {labels}: sha256 of the labels (one byte each) of PROBE_ROWS
    inputs that `seed` names. On the CPU, whatever serves: all nodes must get the same."""
    model = load_model(args["model"], architecture=args["architecture"], width=args["width"])
    x = torch.rand(PROBE_ROWS, PIXELS, generator=torch.Generator().manual_seed(args["seed"]))
    return {"labels": hashlib.sha256(bytes(labels(model, x).tolist())).digest()}
