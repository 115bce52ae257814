"""A proposer that serves its evidence drop by drop, within what a fetch allows, loses its own epoch and no other."""

import trio

import mesh.consensus.proposing as proposing
from mesh.content import CHUNK_BYTES, ChunkReply, Content, Manifest, ManifestReply
from mesh.content.merkle import leaf_of
from mesh.mock import subnet
from mesh.testing.village import simulate

BLOB = Manifest(12 * CHUNK_BYTES, leaf_of(bytes(CHUNK_BYTES)) * 12)


def test_a_slow_proposer_costs_one_epoch_only(monkeypatch) -> None:
    attackers, served = set(), []
    honest_prepare, honest_manifest = proposing.Proposer._prepare, Content.serve_manifest

    async def prepare(self, found, offset):
        if not attackers:
            attackers.add(self._parts.us)  # whoever is elected first
        if self._parts.us not in attackers:
            return await honest_prepare(self, found, offset)
        return ((), self._args(found, evidence=BLOB.digest, size=BLOB.size)) if offset >= 12 else None

    async def manifest(self, request, remote):
        if request.digest != BLOB.digest or self.rpc.net.local.peer_id not in attackers:
            return await honest_manifest(self, request, remote)
        return ManifestReply(size=BLOB.size, leaves=BLOB.leaves, data=b"")

    async def chunk(self, request, remote):
        assert request.digest == BLOB.digest
        served.append(request.index)
        await trio.sleep(26.0)
        return ChunkReply(data=bytes(CHUNK_BYTES))

    monkeypatch.setattr(proposing.Proposer, "_prepare", prepare)
    monkeypatch.setattr(Content, "serve_manifest", manifest)
    monkeypatch.setattr(Content, "serve_chunk", chunk)
    result = simulate(subnet, nodes=4, epochs=4, seed=3)
    spoiled = {epoch for epoch, scores in result.proposals.items() if not scores}
    assert spoiled, "the attacker was never elected: take another seed"
    assert len(spoiled) < len(result.proposals)
    assert len(served) > 4
    for epoch, scores in result.proposals.items():
        if epoch not in spoiled:
            assert len(scores) == 4
            assert result.attested[epoch] == 4
    assert all(result.attested[epoch] == 1 for epoch in spoiled)
