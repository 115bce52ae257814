"""An embedded development chain that speaks Substrate JSON-RPC.

Unmodified Substrate clients connect to it, query, sign, submit and watch. What it is not: it has a single author
(who could choose what goes into a block and grind whatever is drawn from block hashes), no consensus and no
finality gadget, and the state root in its headers is no Merkle root, so nothing can be proven to a light client.
It is for development and tests; production is the URL of a real node.
"""
