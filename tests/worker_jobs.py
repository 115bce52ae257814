"""Jobs for tests of the worker; imported in the worker child."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from mesh.config import SECRET_VARIABLES
from mesh.errors import ModelRejected

_count = 0


def echo(args: dict[str, Any]) -> dict[str, Any]:
    print("a job may print without harming the frames")  # noqa: T201
    return args


def count(args: dict[str, Any]) -> dict[str, Any]:
    global _count
    _count += 1
    return {"count": _count}


def spin(args: dict[str, Any]) -> dict[str, Any]:
    end = time.monotonic() + args["seconds"]
    while time.monotonic() < end:
        pass
    return {}


def crash(args: dict[str, Any]) -> dict[str, Any]:
    os._exit(3)


def hog(args: dict[str, Any]) -> dict[str, Any]:
    return {"size": len(bytearray(args["bytes"]))}


def fail(args: dict[str, Any]) -> dict[str, Any]:
    raise ModelRejected("not a model") if args["model"] else RuntimeError("a bug")


def facts(args: dict[str, Any]) -> dict[str, Any]:
    return {
        "nice": os.nice(0),
        "threads": os.environ["OMP_NUM_THREADS"],
        "pid": os.getpid(),
        "torch": "torch" in sys.modules,
        "secrets": [name for name in SECRET_VARIABLES if name in os.environ],
    }


def odd(args: dict[str, Any]) -> dict[str, Any]:
    return {"x": object()} if args["what"] == "object" else [1]  # type: ignore[return-value]


def big(args: dict[str, Any]) -> dict[str, Any]:
    return {"data": bytes(args["bytes"])}
