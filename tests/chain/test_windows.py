"""The calendar of an epoch, for 20 blocks as the design has it and for any other length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.chain.windows import SLACK_BLOCKS, Window, Windows
from mesh.consensus.during import bounds
from mesh.errors import ConfigError

LENGTHS = st.integers(20, 2000)


def test_epochs_of_twenty_blocks_are_divided_as_the_design_says() -> None:
    assert Windows.of(20) == Windows(
        length=20,
        claim_commit=Window(0, 5),
        draw=7,
        reveal=Window(8, 15),
        vote_commit=Window(8, 14),
        vote_reveal=Window(16, 18),
        inventory=19,
        propose_by=4,
        attest_by=14,
    )


@given(LENGTHS)
def test_windows_follow_each_other_and_fit_the_epoch(length: int) -> None:
    when = Windows.of(length)
    assert 0 == when.claim_commit.first <= when.claim_commit.last < when.draw < when.reveal.first
    assert when.reveal.first == when.vote_commit.first <= when.vote_commit.last < when.reveal.last
    assert when.reveal.last < when.vote_reveal.first <= when.vote_reveal.last < when.inventory < length
    assert 0 < when.propose_by < when.attest_by < length


@given(LENGTHS)
def test_what_is_committed_is_closed_at_every_store_before_it_could_be_chosen(length: int) -> None:
    when = Windows.of(length)
    assert bounds("claim_commit", length)[1] < when.draw
    assert bounds("vote_commit", length)[1] < when.vote_reveal.first


@given(LENGTHS)
def test_other_records_may_be_a_little_early_or_late(length: int) -> None:
    when = Windows.of(length)
    assert bounds("reveal", length) == (when.reveal.first - SLACK_BLOCKS, when.reveal.last + SLACK_BLOCKS)


def test_epochs_too_short_for_all_of_it_are_refused() -> None:
    with pytest.raises(ConfigError):
        Windows.of(19)


def test_a_window_holds_its_ends_and_blocks_only() -> None:
    assert [offset for offset in range(10) if offset in Window(3, 5)] == [3, 4, 5]
    assert "4" not in Window(3, 5)
