"""The faults of py-libp2p 0.8.1, contained.

B1, B4, B10, B12 and B21 are patches of single names in its modules, listed in `PATCHES`, each with what it replaces, so
that a test can put the fault back. B2, B7, B9, B11, B19, B20 and B22 are handled per host or per call here. B3 (inbound
slots never freed), B8 (a host left without close) and B18 (listening with SO_REUSEPORT, so that two processes share a
port in silence) do not arise because mesh.net.libp2p accepts and closes connections itself. B5, B6 and B13 to B17 are
the muxer's: see mesh.net.yamux. tests/net/test_compat.py shows every fault with py-libp2p alone; a test that fails
there says that the fault is gone and its containment can go too.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import libp2p.network.connection.swarm_connection
import libp2p.network.swarm
import libp2p.protocol_muxer.multiselect_communicator
from Crypto.PublicKey import RSA
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey as CryptoRSAPublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key
from libp2p.abc import IMuxedConn, INetStream, ISecureConn
from libp2p.crypto.exceptions import CryptographyError
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.rsa import MAX_RSA_KEY_SIZE, RSAPublicKey
from libp2p.exceptions import BaseLibp2pError, MultiError, ParseError
from libp2p.host.basic_host import BasicHost
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.io.exceptions import IOException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.exceptions import MultiselectCommunicatorError
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils.varint import read_varint_prefixed_bytes_limited
from multiaddr import Multiaddr

from mesh.errors import ConfigError
from mesh.identity import MAX_PUBLIC_KEY_BYTES, MAX_RSA_EXPONENT, MIN_RSA_BITS

log = logging.getLogger(__name__)

LIBP2P_VERSION: Final = "0.8.1"
"""The only version these patches were made for and tested with."""

MAX_NEGOTIATION_BYTES: Final = 1024
"""Length of one multistream-select message; ours are below 100 bytes, go-multistream refuses 64 KiB."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One name of py-libp2p that `apply` replaces."""

    faults: tuple[str, ...]
    target: type | ModuleType
    attribute: str
    original: object
    replacement: object


async def _read_negotiation(self: MultiselectCommunicator) -> str:
    """B1: a protocol name that is not UTF-8 raised UnicodeDecodeError, which no caller expects: it ended the host.

    B12: the length before a name was believed, up to 2**63 bytes, from strangers and before any handshake.
    """
    try:
        data = await read_varint_prefixed_bytes_limited(self.read_writer, MAX_NEGOTIATION_BYTES)
        if data[-1:] != b"\n":
            raise ParseError("message without newline")
        return str(data[:-1], "utf-8")
    except (BaseLibp2pError, IOException, ValueError) as error:
        raise MultiselectCommunicatorError("fail to read from multiselect communicator") from error


def _rsa_public_key(key_bytes: bytes) -> RSAPublicKey:
    """B21: a "public" key of a stranger's handshake was parsed by pycryptodome, which also takes private keys and tests
    the primes of those, in C and for minutes with 60 KB of them; the size was looked at afterwards. And a public key
    with an exponent of 4,000 bits makes every check of a signature cost 30 ms."""
    if len(key_bytes) > MAX_PUBLIC_KEY_BYTES:
        raise CryptographyError(f"an RSA public key of {len(key_bytes)} bytes")
    try:
        key = load_der_public_key(key_bytes)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CryptographyError("not an RSA public key") from error
    if not isinstance(key, CryptoRSAPublicKey):
        raise CryptographyError("not an RSA public key")
    numbers = key.public_numbers()
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_KEY_SIZE or numbers.e > MAX_RSA_EXPONENT:
        raise CryptographyError(f"an RSA public key of {key.key_size} bits and exponent {numbers.e.bit_length()} bits")
    return RSAPublicKey(RSA.construct((numbers.n, numbers.e)))


# B4: a dial waited 250 ms for its own failure before it looked whether it had succeeded.
_HAPPY_EYEBALLS_DELAY_S: Final = 0.0

# B10: this module logs with logging.debug() and friends, to the root logger; if that has no handler, the call even
# installs one on stderr. A Logger has the same methods.
_SWARM_CONNECTION_LOG: Final = logging.getLogger("libp2p.network.connection.swarm_connection")


def _patch(faults: tuple[str, ...], target: Any, attribute: str, replacement: object) -> Patch:
    return Patch(faults, target, attribute, getattr(target, attribute), replacement)


PATCHES: Final = (
    _patch(("B1", "B12"), MultiselectCommunicator, "read", _read_negotiation),
    _patch(("B4",), libp2p.network.swarm, "_HAPPY_EYEBALLS_DELAY", _HAPPY_EYEBALLS_DELAY_S),
    _patch(("B21",), RSAPublicKey, "from_bytes", _rsa_public_key),
    _patch(("B10",), libp2p.network.connection.swarm_connection, "logging", _SWARM_CONNECTION_LOG),
)
"""What `apply` puts in place, for the whole process."""


def apply(version: Callable[[str], str] = importlib.metadata.version) -> None:
    """Put every patch in place; a second call changes nothing. Raises ConfigError for another version of libp2p."""
    found = version("libp2p")
    if found != LIBP2P_VERSION:
        raise ConfigError(
            f"libp2p {found} is installed, but mesh contains the faults of {LIBP2P_VERSION} only: "
            f"run `pip install libp2p=={LIBP2P_VERSION}`"
        )
    for patch in PATCHES:
        setattr(patch.target, patch.attribute, patch.replacement)
    _quieten(logging.getLogger("libp2p"))
    logging.getLogger("multiaddr").setLevel(logging.INFO)  # several lines per address at DEBUG


def _quieten(logger: logging.Logger) -> None:
    """B10: warnings that strangers cause went to stderr. LIBP2P_DEBUG still shows them, as py-libp2p documents."""
    if not os.environ.get("LIBP2P_DEBUG") and not logger.handlers:
        logger.addHandler(logging.NullHandler())


class AddressBook(PeerStore):  # type: ignore[misc]  # libp2p is untyped to mypy here
    """B9: addresses expired after 120 s, and all of a peer's at once; and what a peer says of itself had no bound.

    Here they do not expire, each peer keeps `max_addrs`, and what identify reports is handed to `heard`.

    B19: beyond `max_peers` the first entry to go was our own, because it has no addresses, and with it our key.
    """

    def __init__(
        self, heard: Callable[[ID, Sequence[Multiaddr]], None], *, max_addrs: int, max_peers: int, own: KeyPair
    ) -> None:
        super().__init__(max_records=max_peers, max_peers=max_peers)
        self._own = ID.from_pubkey(own.public_key)
        self._heard = heard
        self._max_addrs = max_addrs

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """Keep the newest `max_addrs`; `ttl` is not used."""
        addrs = list(addrs)[: self._max_addrs]
        super().add_addrs(peer_id, addrs, 0)
        data = self.peer_data_map.get(peer_id)
        if data is not None:
            del data.addrs[: -self._max_addrs]
        self._heard(peer_id, addrs)

    def consume_peer_record(self, envelope: Any, ttl: int) -> bool:
        """B22: whoever connected could leave signed envelopes of 1 MB here, one for each throw-away identity. Nothing
        reads them, and addresses come by identify as well: nothing is kept."""
        return False

    def _enforce_peer_limit(self) -> None:
        for peer_id in list(self.peer_data_map):
            if len(self.peer_data_map) <= self.max_peers:
                return
            if peer_id != self._own:
                del self.peer_data_map[peer_id]
                self.peer_record_map.pop(peer_id, None)

    def add_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        """Keep at most 64 names of at most 128 characters."""
        super().add_protocols(peer_id, [str(name) for name in protocols[:64] if len(name) <= 128])


def contain(host: BasicHost) -> None:
    """The containments that one host needs, before it runs."""
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)
    # B7: one failed dial barred a peer for 60 s, whatever new address was learnt meanwhile.
    swarm._negative_peer_cache._ttl = 0.0
    # The default resource manager counts every connection twice against 10 per second for all strangers together and
    # refuses by the machine's free memory; mesh.net.libp2p has limits of its own.
    swarm.set_resource_manager(None)
    # B22: what others push at us without being asked is not needed.
    host.multiselect.remove_handler(IDENTIFY_PUSH)
    # B20: every 10 s it dialled all peers ever identified, up to half of high_watermark, whatever low_watermark says.
    swarm.auto_connector.run_background_task = _nothing
    swarm.auto_connector.maybe_connect = _nothing
    # Two notifees ran as tasks at every stream's beginning and end, and neither does anything there.
    swarm.notify_opened_stream = _nothing
    swarm.notify_closed_stream = _nothing
    swarm.set_stream_handler(contained_handler(host._swarm_stream_handler))


def use_muxer(host: BasicHost, make: Callable[[ISecureConn, ID], IMuxedConn]) -> None:
    """Multiplex with `make`; py-libp2p takes its own Yamux for /yamux/1.0.0 whatever class it was given."""
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)
    multistream = swarm.upgrader.muxer_multistream

    async def new_conn(conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        protocol, _ = await multistream._selector.select(conn, conn.is_initiator, multistream.negotiate_timeout)
        return multistream._annotate_connection(make(conn, peer_id), conn, protocol)

    multistream.new_conn = new_conn


async def _nothing(*_arguments: object) -> None:
    return


def contained_handler(handler: Callable[[INetStream], Any]) -> Callable[[INetStream], Any]:
    """B2: an exception in a stream handler ended the host. Here it resets its stream and is logged."""

    async def run(stream: INetStream) -> None:
        try:
            await handler(stream)
        except Exception as error:  # the design: nothing a stream does may reach the others
            log.warning(
                "stream handler for %s failed on a stream of %s: %s",
                stream.get_protocol(),
                stream.muxed_conn.peer_id,
                reason(error),
                exc_info=error,
            )
            await stream.reset()

    return run


def reason(error: BaseException) -> str:
    """B11: what happened, in one line, from errors whose cause is wrapped several times.

    Follows `__cause__` and `__context__` to the innermost error that says something.
    """
    said = ""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        inner: BaseException | None = None
        if isinstance(current, BaseExceptionGroup):
            inner = current.exceptions[0]
        elif isinstance(current, MultiError) and current.errors:
            inner = current.errors[0]
        else:
            text = str(current).strip()
            said = f"{type(current).__name__}: {text}" if text else (said or type(current).__name__)
        current = inner or current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return said
