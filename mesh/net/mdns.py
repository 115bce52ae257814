"""Peers on the local network, found by multicast DNS (libp2p specs, discovery/mdns): a thin shell over `zeroconf`.

A node announces `<random name>._p2p._udp.local` with one TXT string `dnsaddr=<multiaddr>/p2p/<peer id>` per address,
and reads those of others. Anybody on the network can say anything there, so what is read only ever becomes hearsay in
the address book: whoever dials still has the peer prove its key. What counts is decided by `parse_txt`, which is pure.

zeroconf keeps threads of its own. They hand over raw TXT data through a bounded queue, and everything else happens in
trio. Beyond the specification, an SRV record comes along, because zeroconf has no service without one.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import string
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import trio
from multiaddr.exceptions import Error as MultiaddrError
from pydantic import BaseModel, ConfigDict, Field
from zeroconf import DNSText, RecordUpdateListener, ServiceBrowser, ServiceInfo, Zeroconf
from zeroconf import Error as ZeroconfError

from mesh.errors import ListenFailed, RemoteProtocolError
from mesh.net.addresses import tcp_endpoint
from mesh.peer import Multiaddr, PeerID, PeerInfo
from mesh.ratelimit import Rate, TokenBucket

log = logging.getLogger(__name__)

SERVICE: Final = "_p2p._udp.local."
_PREFIX: Final = b"dnsaddr="
_MAX_STRING: Final = 255
"""Bytes of one TXT string: its length is one byte (RFC 1035, 3.3)."""
_NAME_CHARS: Final = 40
"""The specification asks for 32 to 63."""
_LAN: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7")
)  # fe80::/10 needs a zone, which a multiaddr of this form does not have


class MdnsConfig(BaseModel):
    """Bounds of what is read and said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    interfaces: tuple[str, ...] = Field(default=(), max_length=16)
    """IP addresses of the interfaces to use; empty: all."""
    max_txt_bytes: int = Field(default=4096, ge=256)
    """A longer TXT record is not read."""
    max_addrs: int = Field(default=8, ge=1)
    """Addresses in one record, said and read; further ones are not looked at."""
    max_waiting: int = Field(default=64, ge=1)
    """Records that wait to be read; the oldest are dropped."""
    max_per_s: float = Field(default=5.0, gt=0)
    """Records read in the long run."""
    max_burst: int = Field(default=50, ge=1)
    """Records read at once."""
    max_peers: int = Field(default=256, ge=1)
    """Peers learnt in one run; then what others say is not read any more."""
    close_timeout_s: float = Field(default=1.0, gt=0)
    """For taking the announcement back; after it the threads are left to end by themselves."""


def is_local(address: Multiaddr, *, ours: Iterable[Multiaddr]) -> bool:
    """Whether an address can be one of this local network: TCP at a private IP address, or at loopback if we are
    there too. Names are none: they lead wherever their owner likes."""
    endpoint = tcp_endpoint(address)
    ip = _ip(endpoint[0]) if endpoint else None
    if ip is None:
        return False
    if ip.is_loopback:
        return any((end := tcp_endpoint(our)) and (own := _ip(end[0])) and own.is_loopback for our in ours)
    return any(ip in network for network in _LAN)


def parse_txt(data: bytes, *, local: PeerInfo, config: MdnsConfig) -> PeerInfo:
    """The peer that a TXT record tells of, with those of its addresses that are local.

    Raises RemoteProtocolError for a record that is too long, torn, tells of several peers, of ourselves, or of no
    address that could be local.
    """
    if len(data) > config.max_txt_bytes:
        raise RemoteProtocolError(f"a TXT record of {len(data)} bytes")
    peers: dict[PeerID, None] = {}
    addrs: dict[Multiaddr, None] = {}
    looked_at = 0
    while data and looked_at < config.max_addrs:
        size, text, data = data[0], data[1 : 1 + data[0]], data[1 + data[0] :]
        if len(text) < size:
            raise RemoteProtocolError("a TXT record that ends within a string")
        if not text.startswith(_PREFIX):
            continue
        looked_at += 1
        try:
            info = PeerInfo.parse(text[len(_PREFIX) :].decode("ascii"))
            peers[info.peer_id] = None
            addrs |= {address: None for address in info.addrs if is_local(address, ours=local.addrs)}
        except (RemoteProtocolError, MultiaddrError, ValueError, LookupError, TypeError) as error:
            log.debug("not an address: %.200r (%s)", text, error)
    if len(peers) != 1:
        raise RemoteProtocolError(f"a TXT record of {len(peers)} peers")
    peer = next(iter(peers))
    if peer == local.peer_id or not addrs:
        raise RemoteProtocolError("a TXT record without an address of another peer on this network")
    return PeerInfo(peer, tuple(addrs))


def make_txt(local: PeerInfo, config: MdnsConfig) -> bytes:
    """What we say of ourselves: our local addresses; empty when there is none."""
    texts = [
        _PREFIX + text.encode("ascii")
        for address, text in zip(local.addrs, local.multiaddrs(), strict=True)
        if is_local(address, ours=local.addrs)
    ]
    fitting = [text for text in texts if len(text) <= _MAX_STRING][: config.max_addrs]
    return b"".join(bytes((len(text),)) + text for text in fitting)


class Reader:
    """Counts what is read of others: no more records than the rate allows, nor peers than `max_peers`. Pure."""

    def __init__(self, local: PeerInfo, config: MdnsConfig) -> None:
        self._local = local
        self._config = config
        self._bucket: TokenBucket = Rate(config.max_per_s, config.max_burst).bucket()
        self._peers: set[PeerID] = set()

    def read(self, data: bytes, *, now: float) -> PeerInfo:
        """parse_txt within the bounds. Raises RemoteProtocolError beyond them, too."""
        if not self._bucket.take(now):
            raise RemoteProtocolError("more records than are read")
        info = parse_txt(data, local=self._local, config=self._config)
        if info.peer_id not in self._peers and len(self._peers) >= self._config.max_peers:
            raise RemoteProtocolError(f"more than {self._config.max_peers} peers")
        self._peers.add(info.peer_id)
        return info


class _Inbox(RecordUpdateListener):  # type: ignore[misc]  # zeroconf is untyped to mypy here
    """Takes TXT data in zeroconf's thread and wakes trio: at most `max_waiting` records and one wake-up wait."""

    def __init__(self, token: trio.lowlevel.TrioToken, *, max_waiting: int, max_bytes: int) -> None:
        super().__init__()
        self._token = token
        self._waiting: deque[bytes] = deque(maxlen=max_waiting)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._arrived = trio.Event()

    def async_update_records(self, zc: Any, now: float, records: list[Any]) -> None:
        """Called by zeroconf with all that it hears; ours is what ends in SERVICE."""
        for update in records:
            record = update.new
            if (
                isinstance(record, DNSText)
                and record.name.lower().endswith("." + SERVICE)
                and len(record.text) <= self._max_bytes
            ):
                with self._lock:
                    self._waiting.append(record.text)
                try:
                    self._token.run_sync_soon(self._wake, idempotent=True)
                except trio.RunFinishedError:
                    return

    def _wake(self) -> None:
        self._arrived.set()

    async def receive(self) -> list[bytes]:
        """All that waits, at least one."""
        while True:
            with self._lock:
                taken = list(self._waiting)
                self._waiting.clear()
            if taken:
                return taken
            self._arrived = trio.Event()
            # What came between the look and the new event has its wake-up still to come: it runs in this thread.
            await self._arrived.wait()


async def discover(
    local: PeerInfo,
    found: Callable[[PeerInfo], None],
    *,
    rng: random.Random,
    config: MdnsConfig | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Announce `local` and call `found` for each record of another peer, until cancelled; started() once announced.

    `found` gets hearsay, and may get the same peer again. Raises ListenFailed when there is no multicast here.
    """
    config = config or MdnsConfig()
    reader = Reader(local, config)
    inbox = _Inbox(trio.lowlevel.current_trio_token(), max_waiting=config.max_waiting, max_bytes=config.max_txt_bytes)
    name = "".join(rng.choices(string.ascii_lowercase + string.digits, k=_NAME_CHARS))

    def start() -> Zeroconf:
        started = Zeroconf(interfaces=list(config.interfaces)) if config.interfaces else Zeroconf()
        try:
            started.add_listener(inbox, None)
            ServiceBrowser(started, SERVICE, handlers=[_ignore])  # asks for the service; what comes goes to `inbox`
            if txt := make_txt(local, config):
                started.register_service(_service(name, txt, local))
            else:
                log.warning("mDNS: none of our addresses is local, so others here are not told of this node")
        except BaseException:
            started.close()
            raise
        return started

    try:
        zeroconf = await trio.to_thread.run_sync(start)
    except (OSError, ZeroconfError) as error:
        raise ListenFailed(f"mDNS does not work on this machine's network: {error!r}; leave out --mdns") from error
    try:
        task_status.started()
        while True:
            for data in await inbox.receive():
                try:
                    info = reader.read(data, now=trio.current_time())
                except RemoteProtocolError as error:
                    log.debug("mDNS: ignored %s", error)
                else:
                    found(info)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + config.close_timeout_s):
            await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)


def _service(name: str, txt: bytes, local: PeerInfo) -> ServiceInfo:
    endpoints = [
        end for address in local.addrs if is_local(address, ours=local.addrs) and (end := tcp_endpoint(address))
    ]
    return ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        port=endpoints[0][1],
        properties=txt,
        server=f"{name}.local.",
        parsed_addresses=list(dict.fromkeys(host for host, _ in endpoints)),
    )


def _ignore(**_arguments: object) -> None:
    return


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
