"""Nodes that break the rules, as objects of their own: a liar is never an `if` in the product.

    claims     subnets that state more than they measured
    consensus  validators that lie about an epoch: their records, inventories, proposals and votes

They run against honest nodes, and must lose.
"""

from mesh.testing.adversaries.claims import MAX_MEASURED_PPM, MIN_OVERCLAIM_PPM, OVERCLAIM_PPM, overclaim, overclaiming

__all__ = ["MAX_MEASURED_PPM", "MIN_OVERCLAIM_PPM", "OVERCLAIM_PPM", "overclaim", "overclaiming"]
