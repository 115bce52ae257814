"""An account key in an encrypted file: the Web3 Secret Storage format, version 3. PURE.

What geth, MetaMask and the eth_account library read and write: a password goes through scrypt or PBKDF2, half of the
result encrypts the key with AES-128-CTR, the other half is hashed (keccak) with the ciphertext, so that a wrong
password is noticed. A key made from a phrase keeps it beside, in a field of our own that other programs pass over.

A key file may come from a stranger. It says itself how much work and memory opening it takes, so both are bounded here.
"""

from __future__ import annotations

import enum
import hmac
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

from mesh.errors import KeyFileError
from mesh.identity import MAX_KEY_FILE_BYTES, AccountKey, keccak256

VERSION: Final = 3
MAX_SCRYPT_BYTES: Final = 512 * 1024 * 1024
"""Memory (128 * n * r) that a file may ask for; geth's own files take half."""
MAX_SCRYPT_WORK: Final = 2**22
"""n * r * p that a file may ask for; geth's own files take half. A few seconds."""
MAX_SCRYPT_R: Final = 64
MAX_SCRYPT_P: Final = 64
MAX_PBKDF2_ROUNDS: Final = 4_000_000
"""A few seconds; files in the wild take 262,144 to 1,000,000."""
MAX_SALT_BYTES: Final = 128
MAX_PASSWORD_BYTES: Final = 1024
MAX_INDEX: Final = 2**31 - 1
"""Of an account under a phrase."""
_SALT_BYTES: Final = 32
_IV_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_ACCOUNT_BYTES: Final = 20
_DERIVED_BYTES: Final = 64
"""Bytes 0-15 encrypt and 16-31 authenticate the key, as the format says; 32-63 seal the phrase."""
_PHRASE_FIELD: Final = "x-mesh-phrase"


class Kdf(enum.Enum):
    """How hard a password is to guess for who has the file; the values are the format's parameters."""

    SCRYPT = (("n", 2**17), ("r", 8), ("p", 1))
    """128 MiB and half a second a guess."""
    SCRYPT_LIGHT = (("n", 2**12), ("r", 8), ("p", 6))
    """4 MiB, what geth calls light: for machines without memory to spare."""
    PBKDF2 = (("c", 600_000), ("prf", "hmac-sha256"))
    """For programs that know no scrypt."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """The BIP39 phrase a key was made from, and which of its accounts it is."""

    words: str = field(repr=False)
    index: int = 0

    @property
    def path(self) -> str:
        """BIP44 path of the account."""
        return f"m/44'/60'/0'/0/{self.index}"


@dataclass(frozen=True, slots=True)
class Opened:
    """What a key file held."""

    key: AccountKey
    phrase: Phrase | None


def seal(opened: Opened, password: str, *, token_bytes: Callable[[int], bytes], kdf: Kdf = Kdf.SCRYPT) -> bytes:
    """The encrypted file's content. `token_bytes` gives that many unpredictable bytes. Raises KeyFileError."""
    if not password:
        raise KeyFileError("the password is empty: a key encrypted with nothing is not encrypted")
    kdf_name = "pbkdf2" if kdf is Kdf.PBKDF2 else "scrypt"
    params: dict[str, object] = {"dklen": _KEY_BYTES, "salt": token_bytes(_SALT_BYTES).hex(), **dict(kdf.value)}
    derived = _derive(kdf_name, params, password)
    iv = token_bytes(_IV_BYTES)
    ciphertext = _aes_128_ctr(derived, iv, opened.key.private)
    content: dict[str, object] = {
        "version": VERSION,
        "id": str(uuid.UUID(bytes=token_bytes(16), version=4)),
        "address": opened.key.account_id.hex(),
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": iv.hex()},
            "ciphertext": ciphertext.hex(),
            "kdf": kdf_name,
            "kdfparams": params,
            "mac": _mac(derived, ciphertext).hex(),
        },
    }
    if opened.phrase is not None:
        phrase, nonce = opened.phrase, token_bytes(_NONCE_BYTES)
        sealed = AESGCM(derived[_KEY_BYTES:]).encrypt(nonce, phrase.words.encode(), phrase.path.encode())
        content[_PHRASE_FIELD] = {"index": phrase.index, "nonce": nonce.hex(), "ciphertext": sealed.hex()}
    return json.dumps(content, indent=2).encode() + b"\n"


def unseal(data: bytes, password: str) -> Opened:
    """The key in an encrypted file. Raises KeyFileError: the password is wrong, the file is none of these, or opening
    it would take more work or memory than the bounds here."""
    content = _parse(data)
    crypto = _object(content, "Crypto" if "Crypto" in content and "crypto" not in content else "crypto")
    if crypto.get("cipher") != "aes-128-ctr":
        raise KeyFileError(f"the key file is encrypted with {_shown(crypto.get('cipher'))}; aes-128-ctr is understood")
    iv = _hex(_object(crypto, "cipherparams"), "iv", least=_IV_BYTES, most=_IV_BYTES)
    ciphertext = _hex(crypto, "ciphertext", least=_KEY_BYTES, most=_KEY_BYTES)
    mac = _hex(crypto, "mac", least=_KEY_BYTES, most=_KEY_BYTES)
    derived = _derive(crypto.get("kdf"), _object(crypto, "kdfparams"), password)
    if not hmac.compare_digest(_mac(derived, ciphertext), mac):
        raise KeyFileError("the password is wrong (or the file was changed)")
    key = AccountKey.from_private(_aes_128_ctr(derived, iv, ciphertext))
    said = address_of(data)
    if said is not None and said != key.account_id:
        raise KeyFileError(f"the key file says it is 0x{said.hex()}, but holds the key of {key.address}")
    return Opened(key, _open_phrase(content, derived, key))


def is_sealed(data: bytes) -> bool:
    """Whether these bytes look like an encrypted key file, as against plain hexadecimal or a phrase."""
    return data.lstrip().startswith(b"{")


def address_of(data: bytes) -> bytes | None:
    """The account an encrypted file says it is of; None when it does not say. Proven only by `unseal`.

    Raises KeyFileError when it is no such file.
    """
    content = _parse(data)
    if content.get("address") in (None, ""):
        return None
    return _hex(content, "address", least=_ACCOUNT_BYTES, most=_ACCOUNT_BYTES)


def _open_phrase(content: Mapping[str, object], derived: bytes, key: AccountKey) -> Phrase | None:
    if _PHRASE_FIELD not in content:
        return None
    sealed = _object(content, _PHRASE_FIELD)
    nonce = _hex(sealed, "nonce", least=_NONCE_BYTES, most=_NONCE_BYTES)
    ciphertext = _hex(sealed, "ciphertext", least=1, most=1024)
    index = _integer(sealed, "index", least=0, most=MAX_INDEX)
    try:
        path = Phrase("", index).path.encode()
        words = AESGCM(derived[_KEY_BYTES:]).decrypt(nonce, ciphertext, path).decode("ascii")
    except (InvalidTag, UnicodeDecodeError) as error:
        raise KeyFileError("the phrase in the key file was changed; the key itself is whole") from error
    if AccountKey.from_mnemonic(words, index) != key:
        raise KeyFileError("the phrase in the key file is another key's")
    return Phrase(words, index)


# --- the primitives ---------------------------------------------------------------------------------------------


def _derive(kdf: object, params: Mapping[str, object], password: str) -> bytes:
    """64 bytes, the first 32 of which are the format's, by parameters that were not checked yet."""
    secret = password.encode(errors="surrogateescape")  # as typed, also where that is no UTF-8
    if len(secret) > MAX_PASSWORD_BYTES:
        raise KeyFileError(f"a password has at most {MAX_PASSWORD_BYTES} bytes")
    salt = _hex(params, "salt", least=1, most=MAX_SALT_BYTES)
    _integer(params, "dklen", least=_KEY_BYTES, most=_DERIVED_BYTES)  # both functions only go on where more is asked
    if kdf == "scrypt":
        n = _integer(params, "n", least=2, most=MAX_SCRYPT_WORK)
        r = _integer(params, "r", least=1, most=MAX_SCRYPT_R)
        p = _integer(params, "p", least=1, most=MAX_SCRYPT_P)
        if n & (n - 1):
            raise KeyFileError(f"the key file's scrypt parameter n is {n}, which is no power of two")
        if 128 * n * r > MAX_SCRYPT_BYTES or n * r * p > MAX_SCRYPT_WORK:
            raise KeyFileError(
                f"opening the key file takes scrypt with n={n}, r={r}, p={p}: more memory or work than an honest file "
                f"asks for (at most {MAX_SCRYPT_BYTES // 2**20} MiB, n*r*p up to {MAX_SCRYPT_WORK})"
            )
        from Crypto.Protocol.KDF import scrypt  # OpenSSL's refuses r=1, which the format's own example has

        try:
            derived = scrypt(secret, salt, _DERIVED_BYTES, n, r, p)  # type: ignore[arg-type]  # it takes bytes
            assert isinstance(derived, bytes)
            return derived
        except (MemoryError, ValueError) as error:
            raise KeyFileError(f"opening the key file needs {128 * n * r // 2**20} MiB of memory: {error}") from error
    if kdf == "pbkdf2":
        if params.get("prf") != "hmac-sha256":
            raise KeyFileError(f"the key file's PBKDF2 uses {_shown(params.get('prf'))}; hmac-sha256 is understood")
        rounds = _integer(params, "c", least=1, most=MAX_PBKDF2_ROUNDS)
        return PBKDF2HMAC(algorithm=SHA256(), length=_DERIVED_BYTES, salt=salt, iterations=rounds).derive(secret)
    raise KeyFileError(f"the key file derives its key with {_shown(kdf)}; scrypt and pbkdf2 are understood")


def _aes_128_ctr(derived: bytes, iv: bytes, data: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(derived[:16]), modes.CTR(iv)).encryptor()
    return encryptor.update(data) + encryptor.finalize()


def _mac(derived: bytes, ciphertext: bytes) -> bytes:
    return keccak256(derived[16:32] + ciphertext)


# --- checked reading --------------------------------------------------------------------------------------------


def _parse(data: bytes) -> Mapping[str, object]:
    if len(data) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"a key file has at most {MAX_KEY_FILE_BYTES} bytes, this one {len(data)}")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise KeyFileError("this is no encrypted key file: it is not JSON") from error
    if not isinstance(content, dict):
        raise KeyFileError("this is no encrypted key file: it is no JSON object")
    version = content.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise KeyFileError(f"the key file has the version {_shown(version)}; {VERSION} is understood")
    return content


def _object(data: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = data.get(name)
    if not isinstance(value, dict):
        raise KeyFileError(f"the key file has no {name!r}")
    return value


def _integer(data: Mapping[str, object], name: str, *, least: int, most: int) -> int:
    value = data.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise KeyFileError(f"the key file has no number {name!r}")
    if not least <= value <= most:
        raise KeyFileError(f"the key file's {name!r} must be {least} to {most}")
    return value


def _hex(data: Mapping[str, object], name: str, *, least: int, most: int) -> bytes:
    value = data.get(name)
    try:
        raw = bytes.fromhex(value.removeprefix("0x")) if isinstance(value, str) and value.isascii() else None
    except ValueError:
        raw = None
    if raw is None or not least <= len(raw) <= most or any(c.isspace() for c in str(value)):
        length = f"{least}" if least == most else f"{least} to {most}"
        raise KeyFileError(f"the key file's {name!r} must be {length} bytes in hexadecimal")
    return raw


def _shown(value: object) -> str:
    return repr(value)[:40] if isinstance(value, str | int | float | None) else type(value).__name__
