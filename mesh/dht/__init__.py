"""The distributed hash table: signed records and providers, found by key among the peers of a subnet."""

from mesh.dht.config import DhtConfig
from mesh.dht.crawling import Crawled, CrawlReport
from mesh.dht.dht import DHT
from mesh.dht.metrics import DhtMetrics
from mesh.dht.report import Change, Found, StoreReport, Want
from mesh.dht.servicer import KadServicer
from mesh.dht.watching import Watch
from mesh.dht.writing import Entry
from mesh.kad.wire import Role

__all__ = [
    "DHT",
    "Change",
    "CrawlReport",
    "Crawled",
    "DhtConfig",
    "DhtMetrics",
    "Entry",
    "Found",
    "KadServicer",
    "Role",
    "StoreReport",
    "Want",
    "Watch",
]
