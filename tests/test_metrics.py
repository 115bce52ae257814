"""What Prometheus sees of a node."""

from __future__ import annotations

import functools
import urllib.request
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from mesh.dht import DHT, DhtMetrics
from mesh.errors import ListenFailed
from mesh.metrics import DhtCollector, RpcCollector, export
from mesh.rpc.config import RpcMetrics
from mesh.rpc.rpc import Rpc


def fake_dht() -> DHT:
    metrics = DhtMetrics()
    one = metrics.operation("get")
    one.done, one.requests = 3, 12
    for seconds in (0.002, 0.02, 50.0):
        one.seconds.observe(seconds)
    one.hops.observe(2)
    metrics.count(metrics.refused, "signature", 5)
    gauges = {"peers": 7, "records": 2, "record_bytes": 900, "proofs": 0}
    return cast(DHT, SimpleNamespace(metrics=metrics, gauges=lambda: gauges))


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


async def test_a_scrape_reads_what_was_counted() -> None:
    rpc = cast(Rpc, SimpleNamespace(metrics=RpcMetrics(calls_out=4)))
    async with trio.open_nursery() as nursery:
        collectors = (DhtCollector(fake_dht()), RpcCollector(rpc))
        port = await nursery.start(functools.partial(export, collectors, port=0))
        seen = await trio.to_thread.run_sync(scrape, port)
        nursery.cancel_scope.cancel()
    assert seen["mesh_dht_peers"] == 7
    assert seen["mesh_dht_store_bytes"] == 900
    assert seen['mesh_dht_lookups_total{operation="get"}'] == 3
    assert seen['mesh_dht_requests_total{operation="get"}'] == 12
    assert seen['mesh_dht_refused_total{reason="signature"}'] == 5
    assert seen['mesh_dht_lookup_seconds_bucket{le="0.003",operation="get"}'] == 1
    assert seen['mesh_dht_lookup_seconds_bucket{le="+Inf",operation="get"}'] == 3
    assert seen['mesh_dht_lookup_hops_bucket{le="2",operation="get"}'] == 1
    assert seen["mesh_rpc_calls_out_total"] == 4
    with pytest.raises(OSError, match="refused"):  # it ended with its task
        await trio.to_thread.run_sync(scrape, port)


async def test_a_taken_port_is_said() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(ListenFailed, match="choose another port"):
            await export((), port=port)


def test_names_that_strangers_choose_are_bounded() -> None:
    metrics = DhtMetrics()
    for number in range(1000):
        metrics.count(metrics.refused_by_others, f"reason-{number}")
    assert len(metrics.refused_by_others) <= 65
    assert metrics.refused_by_others["other"] == 1000 - 64
