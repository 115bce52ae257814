"""The share arithmetic of delegate pools: whatever the order, nobody takes out what it did not put in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.devchain.pallets.network import economics as e
from mesh.devchain.pallets.network.economics import Pool, buy_shares, give_to_pool, sell_shares

TENSOR = 10**18
LEAST = 1000
"""``MinDelegateStakeDeposit``: the calls let nobody deposit less."""

deposits = st.one_of(st.integers(LEAST, 3000), st.integers(LEAST, 10**24))
gifts = st.one_of(st.integers(0, 3000), st.integers(0, 10**24))


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """A pool that others deposited in and were rewarded from, or an empty one."""
    pool = Pool(0, 0)
    for amount, gift in draw(st.lists(st.tuples(deposits, gifts), max_size=3)):
        pool, _ = buy_shares(pool, amount)
        pool = give_to_pool(pool, gift)
    return pool


def price_fell(before: Pool, after: Pool) -> bool:
    return (after.balance + 1) * (before.shares + 10) < (before.balance + 1) * (after.shares + 10)


def test_the_first_buyer_pays_for_the_dead_shares() -> None:
    pool, bought = buy_shares(Pool(0, 0), TENSOR)
    assert (pool, bought) == (Pool(TENSOR + 1000, TENSOR), TENSOR)
    left, amount = sell_shares(pool, bought)
    assert amount == TENSOR - 1009
    assert left == Pool(1000, 1009)


def test_a_reward_for_an_empty_pool_is_nobodys_until_somebody_comes() -> None:
    assert give_to_pool(Pool(0, 0), 0) == Pool(0, 0)
    assert give_to_pool(Pool(0, 0), 5) == Pool(1000, 5)
    assert give_to_pool(Pool(2000, 9), 5) == Pool(2000, 14)


@given(pool=pools(), steps=st.lists(st.tuples(st.booleans(), deposits, st.fractions(0, 1)), min_size=1, max_size=12))
def test_a_depositor_alone_never_takes_out_more_than_it_put_in(
    pool: Pool, steps: list[tuple[bool, int, float]]
) -> None:
    mine, paid, got = 0, 0, 0
    for buys, amount, part in steps:
        if buys:
            after, bought = buy_shares(pool, amount)
            if bought:
                pool, mine, paid = after, mine + bought, paid + amount
        else:
            sold = int(mine * part)
            pool, received = sell_shares(pool, sold)
            mine, got = mine - sold, got + received
        assert got <= paid
    pool, received = sell_shares(pool, mine)
    assert got + received <= paid


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("buy"), st.integers(0, 2), deposits),
            st.tuples(st.just("sell"), st.integers(0, 2), st.fractions(0, 1)),
            st.tuples(st.just("give"), st.just(0), gifts),
        ),
        min_size=3,
        max_size=20,
    )
)
def test_a_pool_always_has_what_it_owes_and_its_price_never_falls(steps: list[tuple[str, int, int]]) -> None:
    pool, shares, balance = Pool(0, 0), [0, 0, 0], 0
    for kind, who, amount in steps:
        before = pool
        if kind == "buy":
            after, bought = buy_shares(pool, amount)
            if bought:
                pool, balance = after, balance + amount
                shares[who] += bought
        elif kind == "sell":
            sold = int(shares[who] * amount)
            pool, received = sell_shares(pool, sold)
            shares[who] -= sold
            balance -= received
        else:
            pool, balance = give_to_pool(pool, amount), balance + amount
        assert pool.balance == balance >= 0
        assert pool.shares - sum(shares) in (0, 1000)
        assert before.shares == 0 or not price_fell(before, pool)
    for each in shares:
        pool, _ = sell_shares(pool, each)
        assert pool.balance >= 0


@given(seed=deposits, kept=st.fractions(0, 1), gift=st.integers(0, 10**26), victim=deposits)
def test_inflating_the_price_of_a_share_never_pays(seed: int, kept: float, gift: int, victim: int) -> None:
    """Enter first, sell all but a few shares, make each dear, let the next depositor round down: a loss always."""
    pool, mine = buy_shares(Pool(0, 0), seed)
    pool, back = sell_shares(pool, mine - int(mine * kept))
    mine = int(mine * kept)
    pool = give_to_pool(pool, gift)
    before = pool
    after, bought = buy_shares(pool, victim)
    if bought:  # else the call refuses the deposit
        pool = after
        worth = sell_shares(pool, bought)[1]
        dearest = (before.balance + 1) // (before.shares + 10) + 1
        assert victim - worth <= dearest + 1  # never more than the one share it rounded away
    assert back + sell_shares(pool, mine)[1] < seed + gift


@given(pool=pools(), amount=st.integers(1, 10**24))
def test_rounding_is_in_the_pools_favour(pool: Pool, amount: int) -> None:
    after, bought = buy_shares(pool, amount)
    if pool.shares:
        assert bought * (pool.balance + 1) <= amount * (pool.shares + 10)
    _, received = sell_shares(after, bought)
    assert received * (after.shares + 10) <= bought * (after.balance + 1)
    assert received <= amount
    assert e.balance_to_shares(0, total_shares=pool.shares, total_balance=pool.balance) == 0
