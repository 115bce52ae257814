"""How an epoch is agreed on: windows, evidence, proposal and attestation (pure), and the loop that carries it out."""
