"""Keys: the peer key that is a node's identity on the network, and the account keys that hold its stake.

Peer keys are libp2p's (specs/peer-ids, `PrivateKey{Type, Data}` protobuf files): Ed25519 by default, RSA (2048 bits and
more) and secp256k1 accepted. Account keys are the chain's: secp256k1, 20-byte accounts, keccak (Ethereum's scheme).
The primitives are `cryptography`'s and `coincurve`'s; only encodings and file handling are here.
"""

from __future__ import annotations

import contextlib
import enum
import hashlib
import hmac
import os
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

import coincurve
from Crypto.Hash import keccak as _keccak
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from mesh.errors import KeyFileError, RemoteProtocolError
from mesh.files import sync_directory
from mesh.peer import PeerID

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192  # a bound on the work a stranger's key can ask of us
MAX_RSA_EXPONENT: Final = 2**32 - 1  # 65537 is usual; one of 3,000 bits makes a check cost 15 ms
MAX_PUBLIC_KEY_BYTES: Final = 1200  # RSA 8192 in PKIX is about 1,060
MAX_KEY_FILE_BYTES: Final = 8192

DEV_MNEMONIC: Final = "bottom drive obey lake curtain smoke basket hold race lonely fit walk"
"""The publicly known development phrase of Substrate's Ethereum-style chains: index 0 is Alith, 8 is Ian."""
DEV_NAMES: Final = ("alith", "baltathar", "charleth", "dorothy", "ethan", "faith", "goliath", "heath", "ian")


class KeyType(enum.IntEnum):
    """libp2p's `KeyType` enum (specs/peer-ids); its ECDSA (3) is not accepted."""

    RSA = 0
    ED25519 = 1
    SECP256K1 = 2


@dataclass(frozen=True, slots=True)
class PeerKey:
    """A private peer key. Its repr shows the PeerID only."""

    type: KeyType
    private: bytes = field(repr=False)
    """Ed25519: 32-byte seed; secp256k1: 32-byte scalar; RSA: PKCS#1 DER."""
    public_key_pb: bytes = field(repr=False)
    peer_id: PeerID

    @classmethod
    def generate(cls, key_type: KeyType = KeyType.ED25519) -> PeerKey:
        """A new key from the system's randomness."""
        if key_type is KeyType.RSA:
            return cls._of_rsa(rsa.generate_private_key(public_exponent=65537, key_size=MIN_RSA_BITS))
        if key_type is KeyType.SECP256K1:
            return cls.from_secret(KeyType.SECP256K1, coincurve.PrivateKey().secret)
        return cls.from_secret(KeyType.ED25519, os.urandom(32))

    @classmethod
    def from_secret(cls, key_type: KeyType, secret: bytes) -> PeerKey:
        """From the type's private bytes (see `private`). Raises KeyFileError when they are not such a key."""
        try:
            if key_type is KeyType.ED25519:
                public = ed25519.Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
            elif key_type is KeyType.SECP256K1:
                if len(secret) != 32:
                    raise ValueError(f"{len(secret)} bytes where 32 belong")
                public = coincurve.PrivateKey(secret).public_key.format(compressed=True)
            else:
                loaded = serialization.load_der_private_key(secret, None)
                if not isinstance(loaded, rsa.RSAPrivateKey):
                    raise ValueError("not an RSA key")
                return cls._of_rsa(loaded)
        except ValueError as error:
            raise KeyFileError(f"these bytes are no {key_type.name.lower()} private key: {error}") from error
        public_key_pb = _pb(key_type, public)
        return cls(key_type, secret, public_key_pb, PeerID.of_public_key(public_key_pb))

    @classmethod
    def dev(cls, label: str) -> PeerKey:
        """The PUBLIC test key of a label (`keys/README.md`): Ed25519 from sha256, for local chains only."""
        return cls.from_secret(KeyType.ED25519, hashlib.sha256(f"mesh dev key: {label}".encode()).digest())

    @classmethod
    def _of_rsa(cls, key: rsa.RSAPrivateKey) -> PeerKey:
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise KeyFileError(f"an RSA peer key has {MIN_RSA_BITS} to {MAX_RSA_BITS} bits, this one {key.key_size}")
        public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        private = key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        public_key_pb = _pb(KeyType.RSA, public)
        return cls(KeyType.RSA, private, public_key_pb, PeerID.of_public_key(public_key_pb))

    def sign(self, message: bytes) -> bytes:
        """libp2p's signature of this key type: Ed25519; ECDSA-SHA256 in DER; RSA PKCS#1 v1.5 SHA-256."""
        if self.type is KeyType.ED25519:
            return ed25519.Ed25519PrivateKey.from_private_bytes(self.private).sign(message)
        if self.type is KeyType.SECP256K1:
            return bytes(coincurve.PrivateKey(self.private).sign(message))
        key = serialization.load_der_private_key(self.private, None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())

    def to_pb(self) -> bytes:
        """The libp2p `PrivateKey` protobuf; Ed25519 as 64 bytes (seed, public), the form of the spec."""
        data = self.private + self.public_key_pb[4:] if self.type is KeyType.ED25519 else self.private
        return _pb(self.type, data)

    @classmethod
    def from_pb(cls, data: bytes) -> PeerKey:
        """From a libp2p `PrivateKey` protobuf, either private encoding of Ed25519. Raises KeyFileError."""
        try:
            number, secret = _parse_pb(data)
            key_type = KeyType(number)
        except (RemoteProtocolError, ValueError) as error:
            raise KeyFileError("this is no libp2p private key of type Ed25519, RSA or secp256k1") from error
        if key_type is KeyType.ED25519 and len(secret) == 64:
            key = cls.from_secret(key_type, secret[:32])
            if key.to_pb() != data:
                raise KeyFileError("the two halves of this Ed25519 key do not belong together")
            return key
        return cls.from_secret(key_type, secret)


def is_signature(public_key_pb: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` is by the owner of this protobuf public key.

    Garbage keys raise RemoteProtocolError; a wrong signature is simply False.
    """
    if len(public_key_pb) > MAX_PUBLIC_KEY_BYTES:
        raise RemoteProtocolError(f"a public key of {len(public_key_pb)} bytes")
    number, data = _parse_pb(public_key_pb)
    try:
        key_type = KeyType(number)
        if key_type is KeyType.ED25519:
            ed25519.Ed25519PublicKey.from_public_bytes(data).verify(signature, message)
            return True
        if key_type is KeyType.SECP256K1:
            return bool(coincurve.PublicKey(data).verify(signature, message))
        key = serialization.load_der_public_key(data)
        if not isinstance(key, rsa.RSAPublicKey) or not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise RemoteProtocolError("not an RSA public key of an accepted size")
        if key.public_numbers().e > MAX_RSA_EXPONENT:
            raise RemoteProtocolError("an RSA public key whose exponent is larger than anybody needs")
        key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        return True
    except InvalidSignature:
        return False
    except ValueError as error:
        # coincurve reports a signature it cannot parse and a key it cannot parse alike; both are refusals.
        if number == KeyType.SECP256K1 and len(data) == 33:
            return False
        raise RemoteProtocolError(f"not a public key: {error}") from error


def _pb(key_type: KeyType, data: bytes) -> bytes:
    length = bytes((len(data),)) if len(data) < 128 else bytes((len(data) & 0x7F | 0x80, len(data) >> 7))
    return bytes((0x08, key_type, 0x12)) + length + data


def _parse_pb(data: bytes) -> tuple[int, bytes]:
    """`{Type, Data}` in canonical order: what every libp2p writes, so that one key has one encoding."""
    if not 5 <= len(data) <= MAX_KEY_FILE_BYTES or data[0] != 0x08 or data[2] != 0x12:
        raise RemoteProtocolError("not a libp2p key")
    length, start = (data[3], 4) if data[3] < 128 else (data[3] & 0x7F | data[4] << 7, 5)
    if len(data) != start + length or (start == 5 and data[4] > 127):
        raise RemoteProtocolError("not a libp2p key: length does not match")
    return data[1], data[start:]


# --- accounts -------------------------------------------------------------------------------------------------


def keccak256(data: bytes) -> bytes:
    """Ethereum's hash (the original Keccak padding, not SHA-3's)."""
    return _keccak.new(digest_bits=256, data=data).digest()


@dataclass(frozen=True, slots=True)
class AccountKey:
    """A coldkey or hotkey: a secp256k1 key and its 20-byte account. Its repr shows the address only."""

    private: bytes = field(repr=False)
    account_id: bytes = field(repr=False)
    address: str

    def sign(self, message: bytes) -> bytes:
        """The 65 bytes r, s, v of the chain's accounts over keccak256(message); the same for the same message."""
        return bytes(coincurve.PrivateKey(self.private).sign_recoverable(keccak256(message), hasher=None))

    @classmethod
    def from_private(cls, private: bytes) -> AccountKey:
        """From 32 bytes. Raises KeyFileError."""
        try:
            if len(private) != 32:  # coincurve pads shorter ones: a mistyped key would become another account
                raise ValueError(f"{len(private)} bytes")
            public = coincurve.PrivateKey(private).public_key.format(compressed=False)
        except ValueError as error:
            raise KeyFileError("an account key is 32 bytes of hexadecimal, not zero") from error
        account = keccak256(public[1:])[-20:]
        return cls(private, account, checksum_address(account))

    @classmethod
    def parse(cls, text: str) -> AccountKey:
        """From hexadecimal (0x optional) or a BIP39 phrase (account 0). Raises KeyFileError; never echoes the text."""
        text = text.strip()
        if " " in text:
            return cls.from_mnemonic(text)
        try:
            return cls.from_private(bytes.fromhex(text.removeprefix("0x")))
        except ValueError as error:
            raise KeyFileError("an account key is 64 hexadecimal digits or a BIP39 phrase") from error

    @classmethod
    def generate(cls) -> AccountKey:
        """A new key from the system's randomness."""
        return cls.from_private(coincurve.PrivateKey().secret)

    @classmethod
    def from_mnemonic(cls, phrase: str, index: int = 0) -> AccountKey:
        """BIP39 phrase without passphrase, BIP44 path m/44'/60'/0'/0/`index`. Raises KeyFileError."""
        from bip39 import bip39_validate

        words = " ".join(phrase.split())
        if not bip39_validate(words, "en"):
            raise KeyFileError("this is no BIP39 phrase (12 to 24 English words with a checksum)")
        seed = hashlib.pbkdf2_hmac("sha512", words.encode(), b"mnemonic", 2048)
        return cls.from_private(_bip32(seed, (44 | _HARD, 60 | _HARD, 0 | _HARD, 0, index)))

    @classmethod
    def dev(cls, name: str) -> AccountKey:
        """A PUBLIC development account: alith … ian. For local chains only."""
        return cls.from_mnemonic(DEV_MNEMONIC, DEV_NAMES.index(name))


_HARD: Final = 0x80000000
_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def _bip32(seed: bytes, path: tuple[int, ...]) -> bytes:
    """The private key at `path` (BIP32, "Private parent key → private child key")."""
    state = hmac.digest(b"Bitcoin seed", seed, "sha512")
    for step in path:
        key, chain_code = state[:32], state[32:]
        data = b"\0" + key if step & _HARD else coincurve.PrivateKey(key).public_key.format(compressed=True)
        digest = hmac.digest(chain_code, data + step.to_bytes(4, "big"), "sha512")
        child = (int.from_bytes(digest[:32], "big") + int.from_bytes(key, "big")) % _ORDER
        state = child.to_bytes(32, "big") + digest[32:]
    return state[:32]


def checksum_address(account_id: bytes) -> str:
    """EIP-55 text of a 20-byte account."""
    text = account_id.hex()
    digest = keccak256(text.encode()).hex()
    return "0x" + "".join(c.upper() if int(d, 16) >= 8 else c for c, d in zip(text, digest, strict=False))


def parse_address(text: str) -> bytes:
    """A 20-byte account from its 0x text; a mixed-case text must carry a right EIP-55 checksum. Raises KeyFileError."""
    try:
        account = bytes.fromhex(text.strip().removeprefix("0x"))
    except ValueError:
        account = b""
    if len(account) != 20:
        raise KeyFileError(f"{text!r} is no address: it takes 0x and 40 hexadecimal digits")
    digits = text.strip().removeprefix("0x")
    if digits not in (digits.lower(), digits.upper()) and "0x" + digits != checksum_address(account):
        raise KeyFileError(f"{text!r} is no address: its checksum is wrong, a character was mistyped")
    return account


def is_dev_account(account_id: bytes) -> bool:
    """Whether anybody knows this account's key (the development accounts)."""
    return account_id in _dev_accounts()


@lru_cache(maxsize=1)
def _dev_accounts() -> frozenset[bytes]:
    # nine derivations of a phrase take ten milliseconds, and this is asked at every submission
    return frozenset(AccountKey.dev(name).account_id for name in DEV_NAMES)


# --- files ----------------------------------------------------------------------------------------------------


class Overwrite(enum.Enum):
    """Whether writing a key may replace a file that is there."""

    REFUSE = enum.auto()
    REPLACE = enum.auto()


def write_secret(path: Path, data: bytes, overwrite: Overwrite = Overwrite.REFUSE) -> None:
    """Write a file of mode 0600, atomically. Raises KeyFileError when it is there and may not be replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if overwrite is Overwrite.REFUSE and path.exists():
        raise KeyFileError(f"{path} is already there: choose another path, or pass --force to replace it")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if overwrite is Overwrite.REFUSE:
            os.link(temporary, path)  # fails if someone was faster, where rename would replace
        else:
            os.replace(temporary, path)
        sync_directory(path.parent)  # an account may be paid into as soon as its key is said to be there
    except FileExistsError as error:
        raise KeyFileError(f"{path} is already there: choose another path, or pass --force to replace it") from error
    except OSError as error:
        raise KeyFileError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def read_secret(
    path: Path, *, max_bytes: int = MAX_KEY_FILE_BYTES, when_missing: str = "look at its path again"
) -> bytes:
    """Read a key file. Raises KeyFileError when it is missing (and says what to do then), too large, or readable by
    others."""
    try:
        # Without waiting: a pipe under a key's name would hold up whoever lists a folder.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise KeyFileError(f"{path} is not a file")
            if info.st_mode & 0o077:
                raise KeyFileError(f"{path} can be read by others: run `chmod 600 {path}`, or make a new key")
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise KeyFileError(f"{path} is not there: {when_missing}") from error
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > max_bytes:
        raise KeyFileError(f"{path} is no key file: it is larger than {max_bytes} bytes")
    return data


def load_peer_key(path: Path) -> PeerKey:
    """A peer key from its libp2p key file. Raises KeyFileError."""
    data = read_secret(path, when_missing=f"make it with `keygen --path {path}`")
    try:
        return PeerKey.from_pb(data)
    except KeyFileError as error:
        raise KeyFileError(f"{path}: {error}") from error


def save_peer_key(path: Path, key: PeerKey, overwrite: Overwrite = Overwrite.REFUSE) -> None:
    """Write a peer key's file. Raises KeyFileError."""
    write_secret(path, key.to_pb(), overwrite)


def load_account_key(path: Path) -> AccountKey:
    """An account key from a file with its hexadecimal text or phrase. Raises KeyFileError."""
    data = read_secret(path)
    try:
        return AccountKey.parse(data.decode("ascii"))
    except (KeyFileError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: {error}") from error


def save_account_key(path: Path, key: AccountKey, overwrite: Overwrite = Overwrite.REFUSE) -> None:
    """Write an account key's file (hexadecimal text). Raises KeyFileError."""
    write_secret(path, f"0x{key.private.hex()}\n".encode(), overwrite)
