"""What shares are worth, where an overwatch epoch stands, and what is said before a call is signed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.chain import checks
from mesh.chain.portfolio import OverwatchEpoch, Pool
from mesh.devchain.pallets.network import economics
from mesh.errors import CallRefused

TENSOR = 10**18
amounts = st.integers(0, 10**27)


@given(amounts, amounts, amounts)
def test_shares_are_worth_what_the_chain_pays(mine: int, others: int, balance: int) -> None:
    shares = mine + others
    pool = Pool(shares, balance)
    paid = min(economics.shares_to_balance(mine, total_shares=shares, total_balance=balance), balance)
    assert pool.worth(mine) == paid


@given(st.integers(1, 10**27), st.integers(1, 10**27), st.integers(1, 10**27))
def test_an_amount_takes_the_least_shares_that_are_worth_it(shares: int, balance: int, amount: int) -> None:
    pool = Pool(shares, balance)
    count = pool.shares_for(amount)
    assert count * (balance + 1) // (shares + 10) >= amount
    assert (count - 1) * (balance + 1) // (shares + 10) < amount


@pytest.mark.parametrize(
    ("block", "epoch", "phase"), [(0, 0, "commit"), (255, 0, "commit"), (256, 0, "reveal"), (320, 1, "commit")]
)
def test_overwatch_epochs(block: int, epoch: int, phase: str) -> None:
    at = OverwatchEpoch.of(block, epoch_length=20, multiplier=16, cutoff=8 * 10**17)
    assert at.epoch == epoch
    assert ("commit" if block < at.reveal_block else "reveal") == phase
    assert at.end_block == (epoch + 1) * 320


@given(free=amounts, spends=amounts, fee=st.integers(0, 10**12))
def test_nothing_is_signed_that_the_account_cannot_pay(free: int, spends: int, fee: int) -> None:
    def ask() -> None:
        checks.require_funds(free_planck=free, spends_planck=spends, fee_planck=fee, account=b"\1" * 20)

    if free - spends - fee >= checks.EXISTENTIAL_DEPOSIT_PLANCK:
        ask()
    else:
        with pytest.raises(CallRefused, match="send it"):
            ask()


def test_hotkeys_are_new_and_not_the_coldkey() -> None:
    checks.require_new_hotkey(b"\1" * 20, coldkey=b"\2" * 20, owner=None)
    with pytest.raises(CallRefused, match="same account"):
        checks.require_new_hotkey(b"\1" * 20, coldkey=b"\1" * 20, owner=None)
    with pytest.raises(CallRefused, match="in use"):
        checks.require_new_hotkey(b"\1" * 20, coldkey=b"\2" * 20, owner=b"\2" * 20)
    assert checks.hotkey_warning(b"\1" * 20, free_planck=10**9) is None
    assert "mesh transfer" in str(checks.hotkey_warning(b"\1" * 20, free_planck=10**9 - 1))


@pytest.mark.parametrize(
    ("planck", "text"),
    [
        (0, "0 TENSOR"),
        (1, "0.000000000000000001 TENSOR"),
        (100 * TENSOR + TENSOR // 2, "100.5 TENSOR"),
        (1_234_567 * TENSOR, "1,234,567 TENSOR"),
        (-TENSOR // 4, "-0.25 TENSOR"),
    ],
)
def test_amounts_are_shown_exactly(planck: int, text: str) -> None:
    assert checks.tensor_text(planck) == text
