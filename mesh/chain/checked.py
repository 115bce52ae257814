"""Values that the chain told, held to what they must be before anything is done with them. PURE.

Decoded storage, events and structs are objects of any form; what is read from them goes through here, so that a chain
that tells something else is named as the one at fault (ChainError) and no absent value passes for a zero.
"""

from __future__ import annotations

from typing import Final

from mesh.errors import ChainError

ACCOUNT_BYTES: Final = 20
_SHOWN_CHARS: Final = 40


def require_number(value: object, what: str) -> int:
    """An integer of 0 or more, as all the pallet's are. Raises ChainError naming `what` it should have been."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ChainError(f"the chain's {what} is no number: {str(value)[:_SHOWN_CHARS]!r}")
    return value


def require_account(value: object, what: str) -> bytes:
    """An account of 20 bytes. Raises ChainError naming `what` it should have been."""
    if not isinstance(value, bytes) or len(value) != ACCOUNT_BYTES:
        raise ChainError(f"the chain's {what} is no account: {str(value)[:_SHOWN_CHARS]!r}")
    return value
