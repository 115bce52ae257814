"""A proposer that serves its evidence drop by drop, within what a fetch allows, loses its own epoch and no other."""

import trio

import mesh.consensus.loop as loop
from mesh.content import ContentServicer, FetchReply
from mesh.mock import subnet
from mesh.testing.village import simulate

DIGEST = b"\x07" * 32
SIZE = 12 * 2**20


def test_a_slow_proposer_costs_one_epoch_only(monkeypatch) -> None:
    attackers = set()
    honest_prepare, honest_fetch = loop.ConsensusLoop._prepare, ContentServicer.rpc_fetch

    async def prepare(self, found, offset):
        if not attackers:
            attackers.add(self._identity.peer_id)  # whoever is elected first
        if self._identity.peer_id not in attackers:
            return await honest_prepare(self, found, offset)
        return ((), self._args(found.ctx, evidence=DIGEST, size=SIZE)) if offset >= 12 else None

    async def fetch(self, request, ctx):
        if request.digest != DIGEST or self._content.rpc.net.local.peer_id not in attackers:
            return await honest_fetch(self, request, ctx)
        await trio.sleep(13.0 if request.offset == 0 else 3.9)
        return FetchReply(size=SIZE, data=bytes(min(request.length, SIZE - request.offset)))

    monkeypatch.setattr(loop.ConsensusLoop, "_prepare", prepare)
    monkeypatch.setattr(ContentServicer, "rpc_fetch", fetch)
    result = simulate(subnet, nodes=4, epochs=4, seed=3)
    spoiled = {epoch for epoch, scores in result.proposals.items() if not scores}
    assert spoiled, "the attacker was never elected: take another seed"
    assert len(spoiled) < len(result.proposals)
    for epoch, scores in result.proposals.items():
        if epoch not in spoiled:
            assert len(scores) == 4
            assert result.attested[epoch] == 4
    assert all(result.attested[epoch] == 1 for epoch in spoiled)
