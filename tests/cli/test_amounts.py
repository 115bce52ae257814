"""Amounts as people type them: exact, or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.chain.checks import tensor_text
from mesh.cli.common import planck, share
from mesh.errors import ConfigError

TENSOR = 10**18


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100", 100 * TENSOR),
        ("100.5 TENSOR", 1005 * TENSOR // 10),
        ("100.5tensor", 1005 * TENSOR // 10),
        ("100500000000000000000 planck", 1005 * TENSOR // 10),
        ("1_000", 1000 * TENSOR),
        ("0.000000000000000001", 1),
        ("1.5000000000000000000000", 15 * TENSOR // 10),
        (" 0 ", 0),
    ],
)
def test_amounts(text: str, value: int) -> None:
    assert planck(text, name="amount") == value


@pytest.mark.parametrize(
    "text",
    ["", "-1", "+1", "1e3", "0x10", "1,5", "1.", ".5", "NaN", "inf", "1 ETH", "1.5 planck", "0.0000000000000000001",
     "٣", "1__0", "1 000", "1" * 80, f"{2**128} planck", "1 TENSOR planck", "1\u00a0000"],
)  # fmt: skip
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--amount"):
        planck(text, name="amount")


@given(st.integers(0, 2**128 - 1))
def test_what_is_shown_can_be_typed(amount: int) -> None:
    assert planck(tensor_text(amount).replace(",", ""), name="amount") == amount
    assert planck(f"{amount} planck", name="amount") == amount


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1", TENSOR), ("0.125", TENSOR // 8), ("12.5%", TENSOR // 8)])
def test_shares(text: str, value: int) -> None:
    assert share(text, name="rate") == value


@pytest.mark.parametrize(
    "text", ["-0.1", "1.1", "101%", "x", "NaN", "0.1234567890123456789", "0.100000000000000000000000000000000001"]
)
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--rate"):
        share(text, name="rate")
