"""What a node counts, for Prometheus: `mesh-server … --metrics-port 9464`, then http://127.0.0.1:9464/metrics.

The parts of a node keep plain numbers; a scrape reads them. Names follow Prometheus's conventions: base units, `_total`
for what only grows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import trio
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from mesh.errors import ListenFailed

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from mesh.dht import DHT
    from mesh.dht.metrics import Histogram
    from mesh.rpc.rpc import Rpc

log = logging.getLogger(__name__)


class DhtCollector(Collector):
    """A DHT node's numbers."""

    def __init__(self, dht: DHT) -> None:
        self._dht = dht

    def collect(self) -> Iterator[Metric]:
        """Read by every scrape, from the exporter's thread: numbers only, which never tear."""
        metrics = self._dht.metrics
        gauges = self._dht.gauges()
        yield GaugeMetricFamily("mesh_dht_peers", "Peers in the routing table.", value=gauges["peers"])
        yield GaugeMetricFamily("mesh_dht_records", "Records held.", value=gauges["records"])
        yield GaugeMetricFamily(
            "mesh_dht_store_bytes", "What they weigh, overhead included.", value=gauges["record_bytes"]
        )
        yield GaugeMetricFamily("mesh_dht_proofs", "Proofs of equivocation held.", value=gauges["proofs"])
        operations = dict(metrics.operations)
        yield _counts(
            "mesh_dht_lookups", "Lookups of ours.", "operation", {kind: one.done for kind, one in operations.items()}
        )
        yield _counts(
            "mesh_dht_failed_lookups",
            "Of these, without any answer.",
            "operation",
            {kind: one.failed for kind, one in operations.items()},
        )
        yield _counts(
            "mesh_dht_requests",
            "Requests they took.",
            "operation",
            {kind: one.requests for kind, one in operations.items()},
        )
        yield _histograms(
            "mesh_dht_lookup_seconds",
            "How long lookups took.",
            {kind: one.seconds for kind, one in operations.items()},
        )
        yield _histograms(
            "mesh_dht_lookup_hops",
            "Answers, one leading to the next, to the nearest peer that answered.",
            {kind: one.hops for kind, one in operations.items()},
        )
        yield _counts(
            "mesh_dht_refused", "Records and requests of others that were refused.", "reason", metrics.refused
        )
        yield _counts(
            "mesh_dht_refused_by_others", "Records of ours that others did not store.", "reason",
            metrics.refused_by_others,
        )  # fmt: skip
        yield _counts("mesh_dht_asked", "Requests of others.", "kind", metrics.asked)
        for name, value in metrics.counters().items():
            yield CounterMetricFamily(f"mesh_dht_{name}", "See mesh.dht.metrics.", value=value)


class RpcCollector(Collector):
    """The numbers of a node's calls."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    def collect(self) -> Iterator[Metric]:
        """As DhtCollector's."""
        metrics = self._rpc.metrics
        for name in (
            "calls_out", "calls_in", "bytes_in", "bytes_out", "channels_opened", "channels_accepted",
            "channels_refused", "violations", "retries",
        ):  # fmt: skip
            yield CounterMetricFamily(
                f"mesh_rpc_{name}", "See mesh.rpc.config.RpcMetrics.", value=getattr(metrics, name)
            )
        yield GaugeMetricFamily(
            "mesh_rpc_buffered_bytes", "Bytes of requests being received.", value=metrics.buffered_bytes
        )
        yield _counts("mesh_rpc_errors_out", "Calls of ours that failed.", "code", metrics.errors_out)
        yield _counts("mesh_rpc_errors_in", "Calls to us that failed.", "code", metrics.errors_in)
        methods = dict(metrics.methods_in)
        yield _counts("mesh_rpc_method_calls", "Calls to us.", "method", {k: m.calls for k, m in methods.items()})


async def export(
    collectors: Sequence[Collector],
    *,
    port: int,
    host: str = "127.0.0.1",
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer scrapes at http://host:port/metrics from a thread until cancelled; started(port), for port 0.

    Whoever reaches the port can read; nothing can be changed. Raises ListenFailed.
    """
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ListenFailed(
            f"metrics cannot be served at {host}:{port} ({error.strerror}): choose another port"
        ) from error
    log.info("metrics are at http://%s:%d/metrics", host, server.server_port)
    try:
        task_status.started(server.server_port)
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):  # ends within the half second in which the thread looks up
            await trio.to_thread.run_sync(server.shutdown)
        server.server_close()
        thread.join()


def _counts(name: str, help_text: str, label: str, numbers: dict[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_text, labels=[label])
    for key, value in sorted(dict(numbers).items()):
        family.add_metric([key], value)
    return family


def _histograms(name: str, help_text: str, histograms: dict[str, Histogram]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, help_text, labels=["operation"])
    for key, histogram in sorted(histograms.items()):
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric([key], buckets=buckets, sum_value=histogram.total)
    return family
