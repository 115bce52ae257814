"""The error tree: everything mesh raises on purpose is a MeshError.

The split that matters to a caller is whose fault it was and whether trying again can help: a NetworkError may be
retried elsewhere, a RemoteProtocolError is the peer's fault and costs it its reputation, a LocalProtocolError is a
bug of ours, a ConfigError is for the person at the keyboard. Every message is one sentence that says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping


class MeshError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(MeshError):
    """A setting, flag, file or environment variable is wrong; the message names it and its allowed range."""


class KeyFileError(ConfigError):
    """A key file is missing, unreadable, of the wrong type, too open, or already there."""


class NetworkError(MeshError):
    """The network failed; another peer or another try may succeed."""


class ListenFailed(NetworkError):
    """A listening address could not be bound (port taken, address not ours)."""


class DialFailed(NetworkError):
    """A peer could not be reached at any of its addresses."""


class StreamBroken(NetworkError):
    """A stream or connection ended before the exchange was complete."""


class ProtocolNotSpoken(StreamBroken):
    """The peer is there and does not serve the protocol."""


class RequestTimeout(NetworkError):
    """A request did not finish before its deadline."""


class PeerSuspended(NetworkError):
    """We do not call or serve this peer for now: it failed too often in a row, or broke the protocol."""


class PublishFailed(NetworkError):
    """A message could not be given to any neighbour now: our rate is used up, or nobody reads."""


class ProtocolError(MeshError):
    """Bytes or messages broke a protocol's rules."""


class LocalProtocolError(ProtocolError):
    """We tried to send something the protocol does not allow: a bug of the caller."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something the protocol does not allow: the peer's fault."""


class RecordError(MeshError):
    """A DHT record could not be made, kept or found."""


class RecordRejected(RecordError):
    """A record failed a validator; `reason` is a short stable word such as ``signature`` or ``expired``."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"record rejected ({reason}){': ' + detail if detail else ''}")
        self.reason = reason
        self.detail = detail


class RecordNotFound(RecordError):
    """No valid record under this key was found by the lookup."""


class StoreFull(RecordError):
    """A bounded store has no room for this record."""


class ContentNotFound(MeshError):
    """No reachable peer served a blob whose digest matches."""


class RpcError(MeshError):
    """A remote call did not return a result."""


class RemoteFailure(RpcError):
    """The remote method failed; `code` is stable, `retryable` says whether the same call may succeed later, `details`
    is what the method adds for programs (JSON values, 512 characters at most, the peer's word only)."""

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, details: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.details = dict(details or {})


class NotAuthorized(RpcError):
    """The peer may not do this. `reason` is a short stable word:

    ``not-registered``, ``not-listed``, ``class-too-low``: not without a change on chain or of the configuration.
    ``chain-unreachable``, ``chain-disagrees``, ``rate-limited``, ``internal``: perhaps later; `retry_after_s` (not
    carried over the network, but in the message) says when, where that is known.
    ``all-refused``: several authorizers refused for different reasons, which the message lists.
    Of signed requests (mesh.auth.request): ``wrong-addressee``, ``wrong-subnet``, ``wrong-method``,
    ``window-too-long``, ``not-yet-valid``, ``expired``, ``signed-before-restart``, ``wrong-body``, ``replayed``,
    ``nonces-full``, ``bad-signature``.
    """

    def __init__(self, reason: str, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after_s = retry_after_s


class ChainError(MeshError):
    """The chain could not be asked, or said no."""


class ChainUnavailable(ChainError):
    """No chain RPC answered in time; retryable."""


class WrongChain(ChainError):
    """The URL leads to another chain than expected (genesis hash, dialect, or not a local chain)."""


class ChainsDisagree(ChainError):
    """Chains that should be the same tell different things of one block; which of them is wrong is not known."""


class BlockUnavailable(ChainError):
    """A block, or the state at it, is not to be had from this node: pruned, of another fork, or not there yet.

    `number` is None where only the hash was known, and the node does not know it either.
    """

    def __init__(self, message: str, *, number: int | None) -> None:
        super().__init__(message)
        self.number = number


class CallRefused(ChainError):
    """A call was refused on our side before signing: unknown or missing argument, value out of its type's range."""


class ExtrinsicInvalid(ChainError):
    """The node refused the extrinsic before a block (bad proof, stale nonce, cannot pay the fee)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"extrinsic refused by the node ({code}): {message}")
        self.code = code
        self.reason = message


class ExtrinsicFailed(ChainError):
    """The extrinsic is in a block and failed there; `name` is the pallet's error name."""

    def __init__(self, pallet: str, name: str, detail: str = "") -> None:
        super().__init__(f"{pallet}.{name}{': ' + detail if detail else ''}")
        self.pallet = pallet
        self.name = name


class ExtrinsicLost(ChainError):
    """A submitted extrinsic neither reached a block before its era ended nor can any more."""


class ConsensusError(MeshError):
    """Evidence, proposal or attestation data is wrong or incomplete; `reason` is a short stable word."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}{': ' + detail if detail else ''}")
        self.reason = reason


class WorkerError(MeshError):
    """The compute worker died, ran out of its limits, or its job raised."""


class ModelRejected(MeshError):
    """A model file is not safetensors, too big, of another architecture, or has other tensors than expected."""


def first_leaf(error: BaseException) -> BaseException:
    """The first error inside nested exception groups, in which nurseries wrap what went wrong."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
