"""How bytes reach peers: the Network protocol, its libp2p adapter, and the containment of py-libp2p's faults."""
