"""Verified improvement earns: nodes tune a model, quorums of others re-train what is claimed, the best is served."""

from subnets.optimization.service import OptimizationSubnet

subnet = OptimizationSubnet()
