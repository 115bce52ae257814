"""Typed calls between peers: frames, the channel that carries them, servicers and stubs."""
