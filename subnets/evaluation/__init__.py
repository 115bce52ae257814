"""What is a model worth? Quorums measure it and vote; the voting rules (votes.py) are the other subnets' too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subnets.evaluation.service import EvaluationSubnet

    subnet: EvaluationSubnet


def __getattr__(name: str) -> EvaluationSubnet:
    """`subnet` is made when asked for: who only wants the voting rules loads no service."""
    if name != "subnet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from subnets.evaluation.service import EvaluationSubnet

    made = EvaluationSubnet()
    globals()["subnet"] = made
    return made
