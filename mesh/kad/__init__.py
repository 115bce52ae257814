"""The Kademlia core. PURE: no sockets, no clock, no trio; `now`, `rng` and signature checks are arguments."""
