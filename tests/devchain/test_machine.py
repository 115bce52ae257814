"""Random lives over the whole table of calls: no planck appears or vanishes unbooked, a failed call costs its fee and
nothing else, and all blocks executed again are the same. Each check is in machine.py, at the step it belongs to."""

from __future__ import annotations

from collections import Counter

import pytest

from .machine import CALLS, Machine, booked, found_subnet

CONSENSUS = {"propose_attestation", "attest"}


def live(seed: int, *, epochs: int, calls: int, names: set[str] | None = None) -> Machine:
    """Some epochs, up to so many calls a block, of these names or of all."""
    machine = Machine(seed, calls=[call for call in CALLS if names is None or call.name in names])
    for epoch in range(epochs):
        if epoch % 5 == 0:
            machine.block(lambda: found_subnet(machine))
        while machine.best.number < (epoch + 1) * machine.length:
            machine.step(machine.rng.randrange(calls + 1))
    machine.replay()
    return machine


def test_any_calls() -> None:
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for seed in range(3):
        machine = live(seed, epochs=30, calls=6)
        done += machine.done
        failed += Counter(name for name, _ in machine.failed.elements())
    tried = {call.name for call in CALLS}
    assert set(done) | set(failed) >= tried
    assert len(tried & set(done)) > 0.8 * len(tried), f"never succeeded: {sorted(tried - set(done))}"
    assert done.total() > 0.4 * failed.total()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 112))
def test_many_calls(seed: int) -> None:
    live(seed, epochs=120, calls=8)


def test_fifty_epochs_of_joins_leaves_delegations_and_slashes() -> None:
    names = {"register_subnet_node", "remove_subnet_node", "add_stake", "remove_stake", "claim_unbondings",
             "add_to_delegate_stake", "remove_delegate_stake", *CONSENSUS}  # fmt: skip
    machine = live(7, epochs=50, calls=3, names=names)
    assert machine.best.number == 50 * machine.length
    minted, burned = booked(machine.state, "Minted"), booked(machine.state, "Burned")
    assert {
        "genesis",
        "treasury",
        "proposer_reward",
        "node_rewards",
        "delegate_rewards",
        "owner_reward",
    } <= minted.keys()
    assert {"fee", "node_burn", "slash"} <= burned.keys()
    assert all(machine.done[name] > 5 for name in names)
