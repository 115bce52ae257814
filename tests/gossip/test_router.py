"""The router alone: events in, actions out."""

import random
from collections.abc import Callable

import pytest
from pydantic import BaseModel, ConfigDict

from mesh.gossip.router import Action, Deliver, Priority, Router, RouterConfig, Send
from mesh.gossip.rules import Judge, TopicRule
from mesh.gossip.wire import IHave, Prune, RawMessage, Rpc, sign
from mesh.identity import PeerKey
from mesh.peer import PeerID
from mesh.rpc.body import pack

T = "/t"
WALL_S = 1_800_000_000.0
US = PeerKey.dev("us")
KEYS = [PeerKey.dev(f"n{i}") for i in range(20)]
PEERS = [key.peer_id for key in KEYS]


class Note(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int


def note(key: PeerKey, number: int, *, topic: str = T, at_s: float = WALL_S) -> RawMessage:
    return sign(key, topic, pack(Note(number=number)), int(at_s * 1e9) + number)


def router(*, is_member: Callable[[PeerID], bool] = lambda peer: True, **config: object) -> Router:
    rule = TopicRule(T, Note, max_bytes=64, max_per_s=100.0, burst=200.0, max_age_s=30.0)
    judge = Judge([rule], is_member=is_member)
    return Router(
        US.peer_id,
        judge=lambda via, raw: judge.judge(via, raw, now=0.0, wall_s=WALL_S),
        has_rule=lambda topic: judge.rule(topic) is not None,
        is_member=is_member,
        rng=random.Random(1),
        config=RouterConfig(**config),
    )


def meet(node: Router, peer: PeerID, now: float = 0.0) -> list[Action]:
    """The peer and we have streams both ways, and it subscribes."""
    node.stream_in(peer)
    hello = node.stream_out(peer)
    return hello + node.on_control(peer, Rpc(subscriptions=((True, T),)), now)


def in_mesh(count: int, **config: object) -> Router:
    """A router that subscribes, with this many neighbours."""
    node = router(**config)
    node.subscribe(T, 0.0)
    for peer in PEERS[:count]:
        meet(node, peer)
    return node


def sends(actions: list[Action], what: str) -> list[PeerID]:
    return [a.peer for a in actions if isinstance(a, Send) and getattr(a.rpc, what)]


# --- the mesh ---------------------------------------------------------------------------------------------------------


def test_a_neighbour_hears_what_we_subscribe_to_and_is_grafted() -> None:
    node = router()
    node.subscribe(T, 0.0)
    actions = meet(node, PEERS[0])
    assert actions == [
        Send(PEERS[0], Rpc(subscriptions=((True, T),)), Priority.CONTROL),
        Send(PEERS[0], Rpc(graft=(T,)), Priority.CONTROL),
    ]
    assert node.mesh(T) == (PEERS[0],)


def test_the_mesh_fills_to_d_and_takes_grafts_up_to_d_hi() -> None:
    node = in_mesh(20)
    assert len(node.mesh(T)) == 6
    outside = [p for p in PEERS if p not in node.mesh(T)]
    refused = [p for p in outside if sends(node.on_control(p, Rpc(graft=(T,)), 1.0), "prune")]
    assert len(node.mesh(T)) == 12
    assert len(refused) == 14 - 6


def test_a_heartbeat_grafts_below_d_lo_and_prunes_above_d_hi() -> None:
    node = in_mesh(20)
    for peer in node.mesh(T)[:2]:
        node.stream_out_ended(peer)
    assert len(node.mesh(T)) == 4
    assert len(sends(node.heartbeat(1.0), "graft")) == 2
    assert len(node.mesh(T)) == 6

    wide = in_mesh(15, d=6, d_hi=15)
    for peer in PEERS[:15]:
        wide.on_control(peer, Rpc(graft=(T,)), 0.0)
    narrow = RouterConfig(d=6, d_hi=8)
    wide.config = narrow
    assert len(sends(wide.heartbeat(1.0), "prune")) == 9
    assert len(wide.mesh(T)) == 6


def test_who_pruned_us_is_left_alone_for_as_long_as_it_says() -> None:
    node = in_mesh(1)
    node.on_control(PEERS[0], Rpc(prune=(Prune(T, 20),)), 0.0)
    assert node.mesh(T) == ()
    assert sends(node.heartbeat(19.0), "graft") == []
    assert sends(node.heartbeat(20.5), "graft") == [PEERS[0]]


def test_nobody_can_ban_himself_for_ever() -> None:
    node = in_mesh(1)
    node.on_control(PEERS[0], Rpc(prune=(Prune(T, 2**63),)), 0.0)
    assert sends(node.heartbeat(601.0), "graft") == [PEERS[0]]


def test_whom_we_cannot_send_to_takes_no_place_in_the_mesh() -> None:
    node = in_mesh(0)
    node.stream_in(PEERS[0])
    node.on_control(PEERS[0], Rpc(subscriptions=((True, T),), graft=(T,)), 0.0)
    assert node.mesh(T) == ()
    node.stream_out(PEERS[0])
    assert sends(node.heartbeat(1.0), "graft") == [PEERS[0]]


def test_unsubscribing_prunes_and_says_so() -> None:
    node = in_mesh(2)
    actions = node.unsubscribe(T, 1.0)
    assert sends(actions, "prune") == PEERS[:2]
    assert sends(actions, "subscriptions") == PEERS[:2]
    assert sends(node.subscribe(T, 2.0), "graft") == []  # the backoff holds for us as well


# --- messages ---------------------------------------------------------------------------------------------------------


def test_a_new_message_is_delivered_and_passed_on_but_not_back() -> None:
    node = in_mesh(4)
    raw = note(KEYS[1], 1)
    actions = node.on_message(PEERS[0], raw, 1.0)
    assert [a.message.value for a in actions if isinstance(a, Deliver)] == [Note(number=1)]
    assert sends(actions, "publish") == [PEERS[2], PEERS[3]]  # neither to its sender nor to its publisher
    assert node.on_message(PEERS[2], raw, 1.1) == []


def test_own_messages_go_to_the_mesh_and_to_some_others() -> None:
    node = in_mesh(20, flood_peers=4)
    got = [a.peer for a in node.publish(note(US, 1), 1.0)]
    assert set(node.mesh(T)) < set(got)
    assert len(got) == len(set(got)) == 6 + 4


def test_who_does_not_subscribe_publishes_to_the_same_d_peers() -> None:
    node = router(flood_peers=0)
    for peer in PEERS:
        meet(node, peer)
    first = {a.peer for a in node.publish(note(US, 1), 1.0)}
    assert len(first) == 6
    assert {a.peer for a in node.publish(note(US, 2), 2.0)} == first
    for now in range(3, 70):
        node.heartbeat(float(now))
    assert {a.peer for a in node.publish(note(US, 3), 70.0)} != first  # forgotten after fanout_ttl_s


def test_what_others_missed_is_offered_and_given() -> None:
    node = in_mesh(10)
    raw = note(KEYS[1], 1)
    node.on_message(PEERS[0], raw, 1.0)
    outside = [p for p in PEERS[:10] if p not in node.mesh(T)]
    offers = sends(node.heartbeat(2.0), "ihave")
    assert set(outside) <= set(offers)
    [answer] = node.on_control(outside[0], Rpc(iwant=(raw.id, b"unknown")), 2.1)
    assert answer == Send(outside[0], Rpc(publish=(raw,)), Priority.LAZY)


def test_a_new_subscriber_is_offered_everything_once() -> None:
    node = in_mesh(1)
    raw = note(KEYS[0], 1)
    node.on_message(PEERS[0], raw, 1.0)
    for now in range(2, 30):
        node.heartbeat(float(now))  # long out of the windows that heartbeats speak of
    offered = [a.rpc.ihave for a in meet(node, PEERS[1], 30.0) if isinstance(a, Send) and a.rpc.ihave]
    assert offered == [(IHave(T, (raw.id,)),)]


def test_what_is_offered_by_many_is_asked_of_one_and_then_of_another() -> None:
    node = in_mesh(2)
    raw = note(KEYS[5], 1)
    offer = Rpc(ihave=(IHave(T, (raw.id,)),))
    assert sends(node.on_control(PEERS[0], offer, 1.0), "iwant") == [PEERS[0]]
    assert sends(node.on_control(PEERS[1], offer, 1.0), "iwant") == []
    assert sends(node.heartbeat(2.0), "iwant") == []
    assert sends(node.heartbeat(4.5), "iwant") == [PEERS[1]]  # the first did not keep its promise
    assert node.score(PEERS[0]) < 0


def test_a_message_that_came_is_not_asked_for() -> None:
    node = in_mesh(2)
    raw = note(KEYS[5], 1)
    node.on_message(PEERS[0], raw, 1.0)
    assert node.on_control(PEERS[1], Rpc(ihave=(IHave(T, (raw.id,)),)), 1.1) == []


# --- attackers --------------------------------------------------------------------------------------------------------


def is_refused(node: Router, raw: RawMessage, *, via: PeerID = PEERS[0]) -> bool:
    """Neither delivered nor passed on, and not remembered, so that the real message under this id gets through."""
    return node.on_message(via, raw, 1.0) == [] and raw.id not in node._seen


def test_a_spoofed_publisher_costs_the_forwarder_and_blocks_nothing() -> None:
    node = in_mesh(3)
    real = note(KEYS[5], 1)
    for forged in (
        RawMessage(real.source, pack(Note(number=2)), real.seqno, T, real.signature),
        RawMessage(real.source, real.data, real.seqno, T, b""),
        RawMessage(real.source, real.data, real.seqno, T, real.signature, KEYS[0].public_key_pb),
    ):
        assert is_refused(node, forged)
    assert node.score(PEERS[0]) == -30.0
    assert any(isinstance(a, Deliver) for a in node.on_message(PEERS[1], real, 1.1))


def test_old_and_future_messages_are_refused() -> None:
    node = in_mesh(3)
    assert is_refused(node, note(KEYS[5], 1, at_s=WALL_S - 31))
    assert is_refused(node, note(KEYS[5], 1, at_s=WALL_S + 6))
    assert node.score(PEERS[0]) == 0.0  # clocks differ, and an honest queue may be long


def test_a_replay_within_its_age_is_still_recognised() -> None:
    node = in_mesh(3)
    node.remember_for(36.0)
    raw = note(KEYS[5], 1)
    node.on_message(PEERS[0], raw, 1.0)
    for now in range(2, 36):
        node.heartbeat(float(now))
    assert node.on_message(PEERS[1], raw, 36.0) == []


def test_oversized_unknown_and_malformed_are_refused() -> None:
    node = in_mesh(3)
    assert is_refused(node, sign(KEYS[5], T, bytes(65), int(WALL_S * 1e9)))
    assert is_refused(node, note(KEYS[5], 1, topic="/unknown"))
    assert is_refused(node, sign(KEYS[5], T, b"\x81\xa1x\x01", int(WALL_S * 1e9)))
    assert is_refused(node, RawMessage(PEERS[5].multihash, b"", b"\x01", T))
    assert node.score(PEERS[0]) == -40.0


def test_after_enough_lies_a_neighbour_leaves_the_mesh_and_is_not_listened_to() -> None:
    node = in_mesh(3)
    for number in range(5):
        node.on_message(PEERS[0], sign(KEYS[5], T, b"no note", int(WALL_S * 1e9) + number), 1.0)
    assert node.is_graylisted(PEERS[0])
    assert sends(node.heartbeat(2.0), "prune") == [PEERS[0]]
    assert PEERS[0] not in node.mesh(T)
    assert node.on_message(PEERS[0], note(KEYS[6], 1), 2.1) == []
    assert node.publish(note(US, 1), 2.2)[0].peer != PEERS[0]
    for now in range(3, 90):
        node.heartbeat(float(now))
    assert not node.is_graylisted(PEERS[0])  # time heals


def test_messages_of_and_from_non_members_go_nowhere() -> None:
    members = set(PEERS[:3]) | {US.peer_id}
    node = router(is_member=members.__contains__)
    node.subscribe(T, 0.0)
    for peer in PEERS[:4]:
        meet(node, peer)
    assert node.mesh(T) == tuple(PEERS[:3])
    assert is_refused(node, note(KEYS[3], 1))  # a stranger's message, passed on by a member
    assert is_refused(node, note(KEYS[1], 1), via=PEERS[3])  # a member's message, passed on by a stranger
    members.discard(PEERS[2])
    node.heartbeat(1.0)
    assert node.mesh(T) == tuple(PEERS[:2])


def test_grafting_again_and_again_is_refused_and_costs_score() -> None:
    node = in_mesh(1)
    node.on_control(PEERS[0], Rpc(prune=(Prune(T, 60),)), 0.0)
    for _ in range(20):
        node.on_control(PEERS[0], Rpc(graft=(T,)), 1.0)
    assert node.mesh(T) == ()
    assert node.is_graylisted(PEERS[0])
    unknown = in_mesh(1)
    assert unknown.on_control(PEERS[0], Rpc(graft=("/a", "/b")), 1.0) == []  # no echo


def test_a_flood_of_offers_is_bounded_and_costs_score() -> None:
    node = in_mesh(2, max_offers=100, max_asked=50)
    asked = 0
    for burst in range(10):
        ids = tuple(bytes([burst, number]) for number in range(200))
        for action in node.on_control(PEERS[0], Rpc(ihave=(IHave(T, ids),)), 1.0):
            assert isinstance(action, Send)
            asked += len(action.rpc.iwant)
    assert asked <= 50
    assert len(node._neighbours[PEERS[0]].offers) <= 100
    assert node.score(PEERS[0]) == -4.0
    scores = []
    for now in range(2, 12):
        node.heartbeat(float(now))  # none of what was offered came
        scores.append(node.score(PEERS[0]))
    assert min(scores) < -9.0


def test_iwant_does_not_amplify() -> None:
    node = in_mesh(2, max_answer_bytes=2000, max_repeats=3)
    raws = [note(KEYS[5], number) for number in range(50)]
    for raw in raws:
        node.on_message(PEERS[1], raw, 1.0)
    given_bytes = 0
    for _ in range(100):
        for action in node.on_control(PEERS[0], Rpc(iwant=tuple(raw.id for raw in raws)), 1.0):
            assert isinstance(action, Send)
            given_bytes += sum(raw.size for raw in action.rpc.publish)
    assert 0 < given_bytes <= 2000
    assert node.score(PEERS[0]) < 0
    same = in_mesh(2)
    same.on_message(PEERS[1], raws[0], 1.0)
    times = sum(len(same.on_control(PEERS[0], Rpc(iwant=(raws[0].id,)), 1.0 + n / 10)) for n in range(10))
    assert times == 3


def test_one_owner_cannot_use_up_anothers_rate_nor_exceed_its_own() -> None:
    node = in_mesh(3)
    for number in range(1000):  # forged in the name of 5: none counts against it
        node._judge(PEERS[0], RawMessage(PEERS[5].multihash, b"", number.to_bytes(8, "big"), T))
    assert any(isinstance(a, Deliver) for a in node.on_message(PEERS[1], note(KEYS[5], 1), 1.0))
    delivered = sum(len(node.on_message(PEERS[1], note(KEYS[6], n), 1.0)) > 0 for n in range(1000))
    assert delivered == 400  # twice the burst of the rule


def test_a_flood_of_new_messages_is_cut_off() -> None:
    node = in_mesh(2, messages_per_s=1.0, message_burst=10.0)
    taken = sum(bool(node.on_message(PEERS[0], note(KEYS[5], n), 1.0)) for n in range(50))
    assert taken == 10
    assert node.score(PEERS[0]) == -4.0  # once a heartbeat


def test_who_floods_for_half_a_minute_is_not_listened_to() -> None:
    node = in_mesh(2, messages_per_s=1.0, message_burst=10.0)
    for second in range(30):
        for number in range(20):
            node.on_message(PEERS[0], note(KEYS[5], second * 20 + number), float(second))
        node.heartbeat(float(second))
    assert node.is_graylisted(PEERS[0])


@pytest.mark.parametrize("wrong", [{"d": 4}, {"d_hi": 5}, {"gossip_windows": 61}, {"prune_score": -50.0}])
def test_a_config_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        RouterConfig(**wrong)
