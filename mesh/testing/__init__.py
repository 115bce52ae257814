"""Testing kit for users of mesh: a simulated network, deterministic runs. Import from the submodules."""
