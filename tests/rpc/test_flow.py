"""Credit against a plain model: no byte beyond a grant, bounded memory, and a sender is never stuck for ever."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.errors import RemoteProtocolError
from mesh.rpc.flow import DATA_LINK, LIBP2P_LINK, Intake, SendCredit, Stale
from mesh.rpc.frame import MAX_BODY_BYTES, MESSAGE_COST

WINDOW = 1000
LARGEST = 5000


class StreamModel(RuleBasedStateMachine):
    """One direction of a stream: a sender with messages to send, a wire, a receiver, and a reader that takes its time.

    The wire is in order both ways and delivers when it likes; credit frames may wait on it."""

    def __init__(self) -> None:
        super().__init__()
        self.credit = SendCredit(WINDOW)
        self.intake = Intake(WINDOW, window=WINDOW)
        self.to_send: deque[int] = deque()
        self.left = 0  # of the message that has begun
        self.wire: deque[tuple[str, int]] = deque()
        self.grants: deque[int] = deque()
        self.coming = 0  # of the message that is being received
        self.began = 0
        self.unread: deque[int] = deque()
        self.sent = self.read = 0

    @rule(size=st.integers(0, LARGEST))
    def queue(self, size: int) -> None:
        if len(self.to_send) < 20:
            self.to_send.append(size)

    def can_send(self) -> bool:
        if self.left:
            return self.credit.left > 0
        return bool(self.to_send) and self.credit.left >= MESSAGE_COST

    @precondition(lambda self: self.can_send())
    @rule(most=st.integers(1, LARGEST))
    def send(self, most: int) -> None:
        if not self.left:
            size = self.to_send.popleft()
            self.credit.left -= MESSAGE_COST
            self.left = size
            self.wire.append(("head", size))
            self.sent += size
        part = min(self.left, self.credit.left, most)
        if part:
            self.credit.left -= part
            self.left -= part
            self.wire.append(("data", part))

    @precondition(lambda self: self.wire)
    @rule()
    def deliver(self) -> None:
        kind, amount = self.wire.popleft()
        if kind == "head":
            self.intake.came(MESSAGE_COST)
            self.coming = self.began = amount
            need = self.intake.need(amount)
            if need:
                self.grants.append(need)
        else:
            self.intake.came(amount)
            self.coming -= amount
        if not self.coming:
            self.unread.append(self.began)

    @precondition(lambda self: self.unread)
    @rule()
    def take(self) -> None:
        size = self.unread.popleft()
        self.read += size
        grant = self.intake.took(size + MESSAGE_COST)
        if grant:
            self.grants.append(grant)

    @precondition(lambda self: self.grants)
    @rule()
    def credit_comes(self) -> None:
        self.credit.add(self.grants.popleft())

    @invariant()
    def memory_is_bounded(self) -> None:
        assert self.intake.held + self.intake.outstanding <= WINDOW + LARGEST + MESSAGE_COST
        assert self.intake.outstanding >= 0
        assert self.credit.left >= 0

    @invariant()
    def both_sides_agree(self) -> None:
        on_wire = sum(MESSAGE_COST if kind == "head" else n for kind, n in self.wire)
        assert self.credit.left + on_wire + sum(self.grants) == self.intake.outstanding

    @invariant()
    def nobody_is_stuck(self) -> None:
        waiting = bool(self.to_send or self.left)
        if waiting and not (self.wire or self.unread or self.grants):
            assert self.can_send(), "nothing is on its way, all was read, and the sender may send nothing"

    def teardown(self) -> None:
        """Whatever happened, everything arrives once both sides go on."""
        for _ in range(100_000):
            if self.can_send():
                self.send(LARGEST)
            elif self.wire:
                self.deliver()
            elif self.grants:
                self.credit_comes()
            elif self.unread:
                self.take()
            else:
                break
        assert not self.to_send
        assert self.sent == self.read


StreamModel.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestStream = StreamModel.TestCase


def test_bytes_that_were_not_granted_are_refused() -> None:
    intake = Intake(10)
    intake.came(4)
    intake.came(6)
    with pytest.raises(RemoteProtocolError, match="0 were granted"):
        intake.came(1)
    assert intake.need(5) == 5
    assert intake.need(5) == 0
    intake.came(5)


def test_credit_without_end_is_capped() -> None:
    credit = SendCredit(5)
    for _ in range(10):
        credit.add(MAX_BODY_BYTES)
    assert credit.left == MAX_BODY_BYTES


@given(st.lists(st.integers(0, 100), max_size=20))
def test_stale_bytes_are_counted(amounts: list[int]) -> None:
    stale = Stale()
    for amount in amounts:
        stale.expect(amount)
    for amount in amounts:
        stale.take(amount)
    with pytest.raises(RemoteProtocolError):
        stale.take(1)


@pytest.mark.parametrize("limits", [LIBP2P_LINK, DATA_LINK])
def test_limits_fit_each_other(limits: tuple[int, ...]) -> None:
    frame, window, first, stream = limits
    assert first <= window
    assert first <= stream
    assert frame <= window  # else the writer would wait for a window that never comes
