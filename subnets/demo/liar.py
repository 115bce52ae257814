"""The demo's liar: the optimization subnet, honest in everything but its claims."""

from mesh.testing.adversaries import overclaiming
from subnets.optimization.service import OptimizationSubnet

subnet: OptimizationSubnet = overclaiming(OptimizationSubnet())
