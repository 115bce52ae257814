"""The DHT over a simulated network: eight nodes, in virtual time."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import RecordNotFound, RecordRejected
from tests.dht.cluster import Cluster, in_sim


@in_sim
async def test_what_one_node_puts_every_other_gets(nursery: trio.Nursery) -> None:
    cluster = Cluster(nursery)
    nodes = await cluster.grow(8)
    report = await nodes[0].dht.put(b"any/a", b"hello", ttl_s=600)
    assert len(report.stored) == 5
    assert report.refused == {}
    for node in nodes:
        assert [record.value for record in await node.dht.get(b"any/a")] == [b"hello"]
        assert [record.value for record in await node.dht.get_first(b"any/a")] == [b"hello"]
    with pytest.raises(RecordNotFound):
        await nodes[3].dht.get(b"any/nothing")
    with pytest.raises(RecordRejected, match="namespace"):
        await nodes[3].dht.get(b"unheard-of/x")
