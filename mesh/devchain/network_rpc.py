"""The network's own JSON-RPC methods, ``network_*``: other names for functions of its runtime API.

PURE. Arguments come as JSON (a number, an account as 0x hex, bytes as an array of numbers) and become the SCALE that
`state_call` would be given; the SCALE of the result goes back as an array of numbers, except that of
``network_proofOfStake``, which is a bool. The hash of the block that is asked about may follow as the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mesh.devchain.scale import Type, account_id, boolean, bytes_, option, u8, u32, u128

RUNTIME_ERROR: Final = 1
"""The code of an error in the runtime, an unknown block for one."""

JSON_BYTES_PER_BYTE: Final = 8
"""What a byte of an answer is reckoned with: five characters, and the objects they are made from."""


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a number is wanted")
    return value


def _maybe_number(value: Any) -> int | None:
    return None if value is None else _number(value)


def _account(value: Any) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x") or len(value) != 42:
        raise ValueError("an account is 0x and 40 hex digits")
    return bytes.fromhex(value[2:])


def _bytes(value: Any) -> bytes:
    if not isinstance(value, list) or not all(isinstance(each, int) for each in value):
        raise ValueError("bytes are an array of numbers")
    return bytes(value)


@dataclass(frozen=True, slots=True)
class Argument:
    """How an argument comes in JSON, and its SCALE type."""

    read: Callable[[Any], Any]
    kind: Type


_U32: Final = Argument(_number, u32)
_ACCOUNT: Final = Argument(_account, account_id)


@dataclass(frozen=True, slots=True)
class RpcMethod:
    """A method: the runtime API function that answers, its arguments, and one that may be left out."""

    api: str
    args: tuple[Argument, ...] = ()
    optional: Argument | None = None
    result: Type = bytes_

    @property
    def least(self) -> int:
        """Fewest parameters."""
        return len(self.args)

    @property
    def most(self) -> int:
        """Most parameters: all arguments and a block hash."""
        return len(self.args) + 1 + (self.optional is not None)

    def read(self, params: Sequence[Any]) -> tuple[bytes, Any]:
        """(SCALE of the arguments, the block hash as it came or None) of ``least`` to ``most`` parameters.

        A text in the place of the optional argument is the block hash. `ValueError` or `ScaleEncodeError` for what
        is no such argument.
        """
        pairs = list(zip(self.args, params, strict=False))
        rest = list(params[len(self.args) :])
        if self.optional is not None and rest and not isinstance(rest[0], str):
            pairs.append((self.optional, rest.pop(0)))
        if len(rest) > 1:
            raise ValueError("a block hash comes last")
        encoded = b"".join(each.kind.encode(each.read(value)) for each, value in pairs)
        return encoded, rest[0] if rest else None

    def answer(self, encoded: bytes) -> Any:
        """The function's result as JSON."""
        value = self.result.decode_all(encoded)
        return list(value) if isinstance(value, bytes) else value


_PAIR: Final = (_U32, _U32)

_FUNCTIONS: Final[dict[str, tuple[Argument, ...]]] = {
    "get_subnet_info": (_U32,),
    "get_all_subnets_info": (),
    "get_subnet_node_info": _PAIR,
    "get_subnet_nodes_info": (_U32,),
    "get_all_subnet_nodes_info": (),
    "get_bootnodes": (_U32,),
    "get_coldkey_subnet_nodes_info": (_ACCOUNT,),
    "get_coldkey_stakes": (_ACCOUNT,),
    "get_delegate_stakes": (_ACCOUNT,),
    "get_node_delegate_stakes": (_ACCOUNT,),
    "get_overwatch_commits_for_epoch_and_node": _PAIR,
    "get_overwatch_reveals_for_epoch_and_node": _PAIR,
    "get_elected_validator_info": _PAIR,
    "get_validators_and_attestors": (_U32,),
    "get_all_overwatch_nodes_info": (),
}


def _method_name(function: str) -> str:
    first, *words = function.split("_")
    return "network_" + first + "".join(word.capitalize() for word in words)


METHODS: Final[dict[str, RpcMethod]] = {
    **{_method_name(name): RpcMethod(f"NetworkRuntimeApi_{name}", args) for name, args in _FUNCTIONS.items()},
    "network_proofOfStake": RpcMethod(
        "NetworkRuntimeApi_proof_of_stake",
        (_U32, Argument(_bytes, bytes_), Argument(_number, u8)),
        optional=Argument(_maybe_number, option(u128)),
        result=boolean,
    ),
}
"""Method names to methods."""
