"""The genesis file of `mesh-chain --genesis`: what the chain is at block 0.

| key          | what                                                                                     |
| ------------ | ---------------------------------------------------------------------------------------- |
| epoch_length | blocks                                                                                   |
| time_ms      | the time of block 0                                                                      |
| dev_accounts | whether alith .. ian are funded with 1,000,000 TENSOR each; true                         |
| defaults     | what the Network pallet starts from: "dev", as without a file, or "network", the real one |
| [fund]       | address = TENSOR, exact to the 18th decimal                                              |
| [network]    | plain storage items of the Network pallet by name: planck, blocks, epochs                |
"""

from __future__ import annotations

import tomllib
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mesh.devchain.pallets.network import BLOCKS_PER_YEAR, storage
from mesh.devchain.pallets.network.storage import DEV_GENESIS
from mesh.devchain.plain import from_plain
from mesh.errors import ConfigError

MAX_GENESIS_FILE_BYTES: Final = 1024 * 1024
_MAX_EXPONENT: Final = 60
_PLAIN: Final = {item.name: item for item in storage.ITEMS if not item.hashed_keys}


class Defaults(StrEnum):
    """What a plain item of the Network pallet holds when the file does not say."""

    DEV = "dev"
    """Cooldowns and minimums of a development chain: a subnet lives through its life in minutes."""
    NETWORK = "network"
    """The network's own."""


class GenesisFile(BaseModel):
    """What the file says, checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch_length: int | None = Field(default=None, ge=4, le=BLOCKS_PER_YEAR, strict=True)
    """Blocks."""
    time_ms: int | None = Field(default=None, ge=0, lt=2**63, strict=True)
    """Of block 0, milliseconds since 1970."""
    dev_accounts: bool = True
    """Whether the public development accounts are funded."""
    defaults: Defaults = Defaults.DEV
    fund: dict[str, int | Decimal] = Field(default_factory=dict)
    """Address to TENSOR."""
    network: dict[str, Any] = Field(default_factory=dict)
    """Plain items of the Network pallet by name, as the codec wants them."""

    @field_validator("network")
    @classmethod
    def _items(cls, given: dict[str, Any]) -> dict[str, Any]:
        values = {}
        for name, value in given.items():
            if name not in _PLAIN:
                raise ValueError(f"{name} is no plain storage item of the Network pallet")
            try:
                values[name] = from_plain(_PLAIN[name].value, value)
            except ConfigError as error:
                raise ValueError(f"{name}: {error}") from error
        return values

    @field_validator("fund", mode="before")
    @classmethod
    def _amounts(cls, given: Any) -> Any:
        if isinstance(given, dict) and any(isinstance(amount, bool) for amount in given.values()):
            raise ValueError("true and false are no amounts of TENSOR")
        return given

    def network_genesis(self) -> dict[str, Any]:
        """Every plain item that is not to hold its default."""
        return {**(DEV_GENESIS if self.defaults is Defaults.DEV else {}), **self.network}


def _check_numbers(value: object) -> None:
    """ConfigError for a number that nothing here can hold: one of thousands of digits takes for ever to be shown."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_numbers(each)
    elif (isinstance(value, int) and value.bit_length() > 256) or (
        isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) > _MAX_EXPONENT
    ):
        raise ConfigError("the genesis file has a number with too many digits: no amount is as large or as small")


def read_genesis(path: Path) -> GenesisFile:
    """The file's content. Raises ConfigError when it cannot be read or is no TOML, pydantic's ValidationError when it
    says what cannot be."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_GENESIS_FILE_BYTES + 1)
        if len(raw) > MAX_GENESIS_FILE_BYTES:
            raise ConfigError(f"{path} has more than {MAX_GENESIS_FILE_BYTES} bytes, too many for a genesis file")
        parsed = tomllib.loads(raw.decode(), parse_float=Decimal)
        _check_numbers(parsed)
    except OSError as error:
        raise ConfigError(f"the genesis file {path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the genesis file {path} is no TOML: {error}") from error
    return GenesisFile.model_validate(parsed)
