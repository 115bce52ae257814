"""What waits for a neighbour: the order, and what makes room."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.gossip.cache import MessageCache, SeenCache
from mesh.gossip.outbox import Outbox
from mesh.gossip.router import Priority
from mesh.gossip.wire import IHave, RawMessage, Rpc


def raw(number: int, size: int = 10) -> RawMessage:
    return RawMessage(b"source", bytes(size), number.to_bytes(8, "big"), "t")


def numbers(rpc: Rpc | None) -> list[int]:
    return [message.seq for message in rpc.publish] if rpc else []


def put(box: Outbox, number: int, priority: Priority, size: int = 10) -> bool:
    return box.put(Rpc(publish=(raw(number, size),)), priority)


def test_control_goes_first_then_own_then_the_rest_and_offers_last() -> None:
    box = Outbox(max_messages=10, max_bytes=10_000)
    box.put(Rpc(ihave=(IHave("t", (b"i",)),)), Priority.LAZY)
    put(box, 1, Priority.LAZY)
    put(box, 2, Priority.FORWARD)
    put(box, 3, Priority.OWN)
    box.put(Rpc(graft=("t",)), Priority.CONTROL)
    assert box.is_urgent
    first = box.take(raw(0).size)
    assert first == Rpc(publish=(raw(3),), graft=("t",))
    assert not box.is_urgent
    assert numbers(box.take(raw(0).size)) == [2]
    assert box.take(10_000) == Rpc(publish=(raw(1),), ihave=(IHave("t", (b"i",)),))
    assert box.take(10_000) is None


def test_the_oldest_answer_makes_room_and_own_messages_never_do() -> None:
    box = Outbox(max_messages=3, max_bytes=10_000)
    assert all(put(box, n, Priority.OWN) for n in (1, 2))
    assert put(box, 3, Priority.LAZY)
    assert put(box, 4, Priority.FORWARD)  # instead of 3
    assert put(box, 5, Priority.OWN)  # instead of 4
    assert not put(box, 6, Priority.OWN)
    assert not put(box, 7, Priority.FORWARD)
    assert box.dropped == 3
    assert numbers(box.take(10_000)) == [1, 2, 5]


def test_what_the_neighbour_has_is_not_sent() -> None:
    box = Outbox(max_messages=3, max_bytes=10_000)
    put(box, 1, Priority.FORWARD)
    put(box, 2, Priority.FORWARD)
    box.discard(raw(1).id)
    assert numbers(box.take(10_000)) == [2]
    assert not box


operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "discard", "take"]), st.integers(0, 9), st.sampled_from(Priority), st.integers(0, 300)
    ),
    max_size=60,
)


@given(operations)
def test_it_never_holds_more_than_its_bounds(steps: list[tuple[str, int, Priority, int]]) -> None:
    box = Outbox(max_messages=5, max_bytes=1000)
    for what, number, priority, size in steps:
        if what == "put" and priority is not Priority.CONTROL:
            put(box, number, priority, size)
        elif what == "discard":
            box.discard(raw(number).id)
        elif what == "take":
            box.take(size)
        held = [message for waiting in box._messages.values() for message in waiting.values()]
        assert len(held) == box._count <= 5
        assert sum(message.size for message in held) == box._bytes <= 1000


@given(st.lists(st.one_of(st.integers(0, 30), st.none()), max_size=80))
def test_the_cache_holds_the_newest_windows_within_its_bounds(steps: list[int | None]) -> None:
    cache = MessageCache(windows=3, max_messages=8, max_bytes=1000)
    windows: list[list[int]] = [[]]
    for step in steps:
        if step is None:
            cache.shift()
            windows = [*windows[-2:], []]
        elif not any(step in window for window in windows):
            cache.put(raw(step, 50))
            windows[-1].append(step)
            while sum(map(len, windows)) > min(8, 1000 // raw(0, 50).size):
                next(window for window in windows if window).pop(0)
    assert cache.ids("t") == [raw(n).id for n in reversed([n for window in windows for n in window])]
    assert cache.ids("t", windows=1) == [raw(n).id for n in reversed(windows[-1])]
    assert cache.ids("other") == []


def test_seen_ids_expire_and_the_oldest_go_when_there_are_too_many() -> None:
    seen = SeenCache(ttl_s=10.0, max_ids=2)
    seen.add(b"a", 0.0)
    seen.add(b"b", 5.0)
    seen.expire(10.0)
    assert b"a" not in seen
    assert b"b" in seen
    seen.add(b"c", 6.0)
    seen.add(b"d", 6.0)
    assert b"b" not in seen
    assert len(seen) == 2
