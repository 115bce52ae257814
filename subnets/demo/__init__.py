"""`mesh demo`: the whole loop on this machine, with real parts (README: what it shows and how)."""

from __future__ import annotations

from pathlib import Path

MIN_NODES = 5
"""A claim needs a quorum of three that is neither its owner nor the node being killed."""
MAX_NODES = 16
MAX_EPOCHS = 20


def command(
    *,
    nodes: int = 6,
    epochs: int = 2,
    block_time: float = 1.0,
    seed: int = 7,
    json: bool = False,
    keep: bool = False,
    data_dir: Path | None = None,
    log_json: bool = False,
) -> None:
    """Run a real network on this machine: it optimizes a model, verifies, serves it and pays.

    Starts a development chain, a bootnode and nodes as processes of their own, lets them work for some epochs (one of
    them lies, one is killed), and prints what the chain says they earned. Exit code 0 only if everything held.

    Args:
        nodes: How many nodes, 5 to 16; the last one lies about its results.
        epochs: How many epochs are settled with rewards.
        block_time: Seconds between blocks.
        seed: Decides which samples are the judge's; keys and search are random.
        json: Print one JSON object instead of a table.
        keep: Leave everything running until Ctrl-C.
        data_dir: Where keys, logs and state go; default is a temporary folder, removed after a good end.
        log_json: Log files as JSON lines.
    """
    from mesh.errors import ConfigError
    from subnets.demo.run import DemoConfig, main

    for name, value, low, high in (
        ("nodes", nodes, MIN_NODES, MAX_NODES),
        ("epochs", epochs, 1, MAX_EPOCHS),
        ("block-time", block_time, 0.5, 60),
    ):
        if not low <= value <= high:
            raise ConfigError(f"--{name}: {value} is out of range, take {low} to {high}")
    main(
        DemoConfig(
            nodes=nodes,
            epochs=epochs,
            block_time_s=block_time,
            seed=seed,
            data_dir=data_dir,
            after=DemoConfig.After.KEEP if keep else DemoConfig.After.END,
            output=DemoConfig.Output.JSON if json else DemoConfig.Output.TABLE,
            log_json=log_json,
        )
    )
