"""Authorizers made of others: what they agree on, and that doubt, crashes and floods are refusals."""

from __future__ import annotations

import pytest
import trio
from pydantic import ValidationError
from trio.testing import MockClock

from mesh.auth.authorizer import Authorizer, Everyone, PeerClass
from mesh.auth.combine import AllOf, AllowList, AnyOf
from mesh.auth.rate import RateLimited, RateLimits
from mesh.errors import ChainUnavailable, ConfigError, NotAuthorized
from mesh.identity import PeerKey
from mesh.peer import PeerID
from mesh.ratelimit import Rate

PUBLIC, GUEST, INFRASTRUCTURE, MEMBER = PeerClass
A, B = (PeerKey.dev(f"combine {label}").peer_id for label in "ab")
ASKS = ("authorize", "classify", "recheck")


class Says:
    """Answers the same to every question: a class, an error to raise, or anything else; counts the questions."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked = 0
        self.changes = 0
        self._changed = trio.Event()

    def change(self) -> None:
        self.changes += 1
        event, self._changed = self._changed, trio.Event()
        event.set()

    async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        return await self.recheck(peer, least)

    async def classify(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
        return await self.recheck(peer, least)

    async def recheck(self, peer: PeerID, least: PeerClass) -> PeerClass:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[return-value]

    async def wait_change(self, seen: int | None = None) -> int:
        seen = self.changes if seen is None else seen
        while self.changes <= seen:
            await self._changed.wait()
        return self.changes


def no(reason: str = "not-registered") -> Says:
    return Says(NotAuthorized(reason, f"because {reason}."))


async def ask(who: Authorizer, how: str, least: PeerClass = MEMBER, peer: PeerID = A) -> PeerClass:
    if how == "recheck":
        return await who.recheck(peer, least)
    return await (who.authorize if how == "authorize" else who.classify)(peer, "/toy/1 train", least)


async def refusal(
    who: Authorizer, how: str = "authorize", least: PeerClass = MEMBER, peer: PeerID = A
) -> NotAuthorized:
    with pytest.raises(NotAuthorized) as caught:
        await ask(who, how, least, peer)
    return caught.value


@pytest.mark.parametrize("how", ASKS)
async def test_all_must_agree_and_the_lowest_class_holds(how: str) -> None:
    assert await ask(AllOf(Says(MEMBER), Says(INFRASTRUCTURE), Says(MEMBER)), how, GUEST) is INFRASTRUCTURE
    last = Says(MEMBER)
    assert (await refusal(AllOf(Says(MEMBER), no("first"), no("second"), last), how)).reason == "first"
    assert last.asked == 0


@pytest.mark.parametrize("how", ASKS)
async def test_any_may_agree_and_the_highest_class_holds(how: str) -> None:
    last = Says(MEMBER)
    assert await ask(AnyOf(no(), Says(GUEST), Says(INFRASTRUCTURE)), how, GUEST) is INFRASTRUCTURE
    assert await ask(AnyOf(no(), Says(MEMBER), last), how) is MEMBER
    assert last.asked == 0
    error = await refusal(AnyOf(no("not-listed"), no("class-too-low")), how)
    assert error.reason == "all-refused"
    assert str(error) == "not-listed: because not-listed.; class-too-low: because class-too-low."
    late, soon = (NotAuthorized("rate-limited", "wait.", retry_after_s=s) for s in (9.0, 2.0))
    error = await refusal(AnyOf(Says(late), Says(soon)), how)
    assert (error.reason, error.retry_after_s) == ("rate-limited", 2.0)


@pytest.mark.parametrize("how", ASKS)
@pytest.mark.parametrize("combine", [AllOf, AnyOf])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (RuntimeError("secret path"), "internal"),
        (ExceptionGroup("", [KeyError()]), "internal"),
        (ConfigError("secret path"), "internal"),
        (ChainUnavailable("secret path"), "chain-unreachable"),
        (None, "internal"),
        (True, "internal"),
        (3, "internal"),
        (GUEST, "internal"),  # less than was asked for
    ],
)
async def test_a_crash_or_a_strange_answer_is_a_refusal(
    how: str, combine: type[AllOf] | type[AnyOf], answer: object, reason: str
) -> None:
    error = await refusal(combine(Says(answer)), how)
    assert error.reason == reason
    assert "secret" not in str(error)
    if combine is AnyOf:
        assert await ask(AnyOf(Says(answer), Says(MEMBER)), how) is MEMBER
    else:
        assert (await refusal(AllOf(Says(MEMBER), Says(answer)), how)).reason == reason


async def test_a_cancellation_is_no_refusal(autojump_clock: MockClock) -> None:
    class Slow(Everyone):
        async def authorize(self, peer: PeerID, method: str, least: PeerClass) -> PeerClass:
            await trio.sleep_forever()
            raise AssertionError

    for who in (AllOf(Slow()), AnyOf(Slow())):
        with trio.move_on_after(1) as scope:
            await who.authorize(A, "m", MEMBER)
        assert scope.cancelled_caught


def test_nothing_decides_nothing() -> None:
    for combine in (AllOf, AnyOf):
        with pytest.raises(ConfigError, match="at least one"):
            combine()


async def test_a_list_lets_in_whom_it_names_and_refuses_others_everything() -> None:
    listed = AllowList({A: GUEST})
    assert await ask(listed, "authorize", GUEST) is GUEST
    assert (await refusal(listed)).reason == "class-too-low"
    for how in ASKS:
        assert (await refusal(listed, how, PUBLIC, B)).reason == "not-listed"
    assert await ask(AllowList([A, B]), "recheck", MEMBER, B) is MEMBER
    assert (await refusal(AllowList([]))).reason == "not-listed"


@pytest.mark.parametrize("peers", [[str(A)], {A: 3}, {A: None}, "12D3"])
def test_a_list_of_something_else_is_a_mistake(peers: object) -> None:
    with pytest.raises(ConfigError):
        AllowList(peers)  # type: ignore[arg-type]


@pytest.mark.parametrize("combine", [AllOf, AnyOf])
@pytest.mark.parametrize("index", [0, 1])
async def test_a_change_of_any_part_is_one_of_the_whole(
    combine: type[AllOf] | type[AnyOf], index: int, autojump_clock: MockClock
) -> None:
    parts = [Says(MEMBER), Says(MEMBER)]
    who = AllOf(combine(*parts), Everyone())
    seen = who.changes
    with trio.move_on_after(5) as scope:
        await who.wait_change(seen)
    assert scope.cancelled_caught
    parts[index].change()  # before anybody waits: not lost
    assert await who.wait_change(seen) == seen + 1
    woken: list[int] = []
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            woken.append(await who.wait_change())

        nursery.start_soon(wait)
        await trio.sleep(1)
        assert not woken
        parts[index].change()
    assert woken == [seen + 2]


async def test_what_breaks_the_waiting_is_raised_as_it_is() -> None:
    class Breaks(Everyone):
        async def wait_change(self, seen: int | None = None) -> int:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await AnyOf(Breaks(), Everyone()).wait_change()


async def test_rates_are_per_peer_and_class_and_say_when_to_come_again(autojump_clock: MockClock) -> None:
    who = RateLimited(AllowList({A: MEMBER, B: GUEST}), RateLimits(member=Rate(10, 3), guest=Rate(0.5, 1)))
    for _ in range(3):
        assert await ask(who, "authorize", GUEST) is MEMBER
    error = await refusal(who)
    assert (error.reason, error.retry_after_s) == ("rate-limited", 0.1)
    assert "try again in 0.10 s" in str(error)
    await trio.sleep(error.retry_after_s or 0)
    await ask(who, "authorize")
    await ask(who, "authorize", GUEST, B)
    error = await refusal(who, "authorize", GUEST, B)
    assert error.retry_after_s == 2.0
    for _ in range(50):  # our own calls, and looking again, cost the peer nothing
        await ask(who, "classify", GUEST, B)
        await ask(who, "recheck", GUEST, B)


async def test_the_total_is_shared_by_those_who_were_let_in_alone(autojump_clock: MockClock) -> None:
    stranger = PeerKey.dev("combine stranger").peer_id
    who = RateLimited(AllowList([A, B]), RateLimits(member=Rate(1, 2), total=Rate(1, 3)))
    for _ in range(100):
        assert (await refusal(who, "authorize", PUBLIC, stranger)).reason == "not-listed"
    await ask(who, "authorize")
    await ask(who, "authorize")
    for _ in range(100):
        assert str(A) in str(await refusal(who))  # over its own rate: takes nothing from the total
    await ask(who, "authorize", MEMBER, B)
    error = await refusal(who, "authorize", MEMBER, B)
    assert "all peers together" in str(error)
    assert error.retry_after_s == 1.0


async def test_a_crowd_of_one_class_neither_grows_the_table_nor_pushes_out_another(autojump_clock: MockClock) -> None:
    crowd = [PeerKey.dev(f"combine crowd {i}").peer_id for i in range(200)]
    classes = dict.fromkeys(crowd, GUEST) | {A: MEMBER}
    who = RateLimited(AllowList(classes), RateLimits(guest=Rate(1, 10), max_peers=16))
    outcomes: list[tuple[str, float | None]] = []
    for peer in crowd:
        try:
            await ask(who, "authorize", GUEST, peer)
        except NotAuthorized as error:
            outcomes.append((error.reason, error.retry_after_s))
    assert outcomes == [("rate-limited", 10.0)] * (200 - 16)
    assert len(who._peers[GUEST]) == 16
    assert await ask(who, "authorize") is MEMBER


@pytest.mark.parametrize("rate", [Rate(0, 5), Rate(-1, 5), Rate(1, 0.5), Rate(float("nan"), 5)])
def test_a_rate_that_lets_nothing_through_is_a_mistake(rate: Rate) -> None:
    with pytest.raises(ValidationError):
        RateLimits(member=rate)


async def test_everyone_is_everything_and_never_changes(autojump_clock: MockClock) -> None:
    for how in ASKS:
        assert await ask(Everyone(), how) is MEMBER
    with trio.move_on_after(10**6) as scope:
        await Everyone().wait_change(0)
    assert scope.cancelled_caught
