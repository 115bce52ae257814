"""TLS 1.3 over TCP without copies: certificates made for one connection, contexts that trust one certificate, and a
stream on a non-blocking `ssl.SSLSocket`.

trio.SSLStream moves every byte through two memory buffers and Python code per record; here OpenSSL reads from the
socket straight into the caller's buffer (benchmarks/data_stream.py compares them).
"""

from __future__ import annotations

import datetime
import errno
import os
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.errors import LocalProtocolError, StreamBroken
from mesh.peer import PeerID

ALPN: Final = "mesh-data/1"
_SLICE_BYTES: Final = 256 * 1024
"""Bytes moved between two looks at other tasks: some 0.1 ms."""
_VALID: Final = datetime.timedelta(days=1)
"""Before and after now: clocks differ, and a connection lives for hours at most."""
_CLOSE_S: Final = 0.5


class Identity(NamedTuple):
    """A key and its self-signed certificate, for one connection."""

    certificate: bytes
    """DER."""
    pem: bytes
    """Key and certificate. Secret."""


def new_identity(now_s: float) -> Identity:
    """P-256, since making and using such a key costs least."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mesh")])
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(
        certificate.public_bytes(serialization.Encoding.DER),
        private + certificate.public_bytes(serialization.Encoding.PEM),
    )


def server_context(identity: Identity, peer_certificate: bytes) -> ssl.SSLContext:
    """Accepts the holder of that one certificate. Raises ssl.SSLError when it is none."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity, peer_certificate)
    context.num_tickets = 0
    return context


def client_context(identity: Identity, peer_certificate: bytes) -> ssl.SSLContext:
    """Accepts a server that holds that one certificate. Raises ssl.SSLError when it is none."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity, peer_certificate)


def closed_context(identity: Identity, select: Callable[[ssl.SSLSocket, str | None], int | None]) -> ssl.SSLContext:
    """For a listener: trusts nobody by itself. `select` is asked for each server name; it sets the socket's context, or
    returns a TLS alert."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity, None)
    context.num_tickets = 0
    context.set_servername_callback(lambda sock, name, _: select(sock, name))  # type: ignore[arg-type]
    return context


def _context(protocol: int, identity: Identity, peer_certificate: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # the server name is a one-time name; the certificate itself is what is checked
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    if peer_certificate is not None:
        context.load_verify_locations(cadata=peer_certificate)
    _load(context, identity.pem)
    return context


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """OpenSSL reads keys from files only: one in memory where there is such a thing, else one of mode 0600 for a
    moment."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("mesh", os.MFD_CLOEXEC)
        try:
            os.write(handle, pem)
            context.load_cert_chain(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
        return
    with tempfile.TemporaryDirectory() as directory:  # mode 0700
        path = Path(directory) / "key.pem"
        path.touch(mode=0o600)
        path.write_bytes(pem)
        context.load_cert_chain(path)


async def dial(ip: str, port: int) -> socket.socket:
    """A TCP connection to that address and no other. Raises OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        code = sock.connect_ex((ip, port))
        if code == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


async def handshake(sock: ssl.SSLSocket, certificate: Callable[[], bytes]) -> None:
    """Finish the handshake with the holder of exactly that certificate (a listener knows which only once it heard the
    server name). Raises ssl.SSLError, OSError."""
    while True:
        try:
            sock.do_handshake()
            break
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)
    # OpenSSL has checked the chain against the only certificate it trusts; this says the same without OpenSSL.
    if sock.getpeercert(binary_form=True) != certificate() or sock.version() != "TLSv1.3":
        raise ssl.SSLError("the peer shows another certificate than it offered")
    if sock.selected_alpn_protocol() != ALPN:
        raise ssl.SSLError(f"the peer does not speak {ALPN}")


class TlsStream:
    """A stream over a finished TLS handshake (mesh.net.base.Stream)."""

    def __init__(self, sock: ssl.SSLSocket, remote: PeerID) -> None:
        self._sock = sock
        self._remote = remote
        self._is_closed = False
        self._is_closing = False
        self._is_ended = False
        self._sending = False
        self._receiving = False
        self.closed = trio.Event()
        """Set when this side has closed it."""

    @property
    def remote(self) -> PeerID:
        """Who is at the other end: holder of the certificate that came over its libp2p connection."""
        return self._remote

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See mesh.net.base.Stream."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            view = memoryview(data).cast("B")
            await trio.lowlevel.checkpoint_if_cancelled()
            while view:
                self._check()
                try:
                    # After a refusal to write OpenSSL wants the same bytes again: `view` moves only by what went out.
                    view = view[self._sock.send(view[:_SLICE_BYTES]) :]
                    await trio.lowlevel.cancel_shielded_checkpoint() if view else None
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(self._sock)
        except (OSError, trio.ClosedResourceError) as error:
            raise self._broken(error) from error
        finally:
            self._sending = False

    async def receive_into(self, view: memoryview) -> int:
        """Fill `view` with what is there, at least one byte; 0 once the other side has ended. Raises StreamBroken."""
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            have, most = 0, min(len(view), _SLICE_BYTES)
            has_waited = False
            while have < most and not self._is_ended:
                self._check()
                try:
                    got = self._sock.recv_into(view[have:most])  # one TLS record at most, 16 KiB
                    have += got
                    self._is_ended = not got
                except ssl.SSLWantReadError:
                    if have:
                        break
                    await trio.lowlevel.wait_readable(self._sock)
                    has_waited = True
                except OSError:
                    if not have:
                        raise
                    break  # what came before the failure counts; the next call fails
            if not has_waited:
                # A sender that is always ahead must not keep the other tasks waiting.
                await trio.lowlevel.cancel_shielded_checkpoint()
            return have
        except (OSError, trio.ClosedResourceError) as error:
            raise self._broken(error) from error
        finally:
            self._receiving = False

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See mesh.net.base.Stream."""
        if max_bytes < 1:
            raise LocalProtocolError("receive_some needs max_bytes >= 1")
        buffer = bytearray(max_bytes)
        with memoryview(buffer) as view:
            have = await self.receive_into(view)
        del buffer[have:]
        return bytes(buffer)

    async def aclose(self) -> None:
        """See mesh.net.base.Stream. Waits a moment for the other side to read what was sent."""
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            return
        self._is_closing = True  # from here on the socket is plain TCP, and nobody may read it but us
        try:
            with trio.move_on_after(_CLOSE_S):
                try:
                    self._sock.unwrap()
                except (OSError, ValueError):
                    pass  # it says goodbye, and does not wait for the answer
                self._sock.shutdown(socket.SHUT_WR)
                while True:  # closing with unread bytes would make TCP throw away what we sent
                    await trio.lowlevel.wait_readable(self._sock)
                    if not socket.socket.recv(self._sock, 65536):
                        break
        except (OSError, ValueError, trio.ClosedResourceError, trio.BusyResourceError):
            pass
        finally:
            self._close()

    async def reset(self) -> None:
        """See mesh.net.base.Stream."""
        self._close()
        await trio.lowlevel.checkpoint()

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            self.closed.set()

    def _check(self) -> None:
        if self._is_closed or self._is_closing:
            raise StreamBroken(f"data connection to {self._remote.short} was closed on this side")

    def _broken(self, error: Exception) -> StreamBroken:
        # What OpenSSL left half done cannot be gone on with.
        self._close()
        return StreamBroken(f"data connection to {self._remote.short} broke: {error or type(error).__name__}")
