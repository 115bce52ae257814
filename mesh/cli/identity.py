"""`mesh identity`: who a coldkey says it is, for people who choose whom to delegate to."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mesh.chain import calls
from mesh.chain.portfolio import hotkeys_of
from mesh.cli.acting import ActOptions, Plan, Step, act
from mesh.cli.common import Whose, read_chain
from mesh.errors import CallRefused
from mesh.identity import AccountKey, checksum_address, parse_address
from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from mesh.chain.substrate import SubstrateChain


def set_identity(
    *,
    name: str,
    hotkey: str | None = None,
    url: str = "",
    image: str = "",
    discord: str = "",
    x: str = "",
    telegram: str = "",
    github: str = "",
    hugging_face: str = "",
    description: str = "",
    misc: str = "",
    options: ActOptions | None = None,
) -> None:
    """Say who the coldkey is; replaces what it said before.

    Args:
        name: Unique name.
        hotkey: A hotkey of yours; needed when there are several.
        url: Web page.
        image: Address of a picture.
        discord: Name there.
        x: Name there.
        telegram: Name there.
        github: Name there.
        hugging_face: Name there.
        description: One line for people.
        misc: Anything else.
    """
    fields = {
        "name": name,
        "url": url,
        "image": image,
        "discord": discord,
        "x": x,
        "telegram": telegram,
        "github": github,
        "hugging_face": hugging_face,
        "description": description,
        "misc": misc,
    }

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        owned = await hotkeys_of(chain, signer.account_id)
        chosen = [each for each in owned if hotkey is None or each == parse_address(hotkey)]
        if not chosen:
            which = "no hotkey" if hotkey is None else f"no hotkey {hotkey}"
            raise CallRefused(f"{signer.address} has {which} on this chain: register a node with it first")
        return Plan((Step(f"say that {signer.address} is {name!r}", calls.set_identity(chosen[0], fields)),))

    act(options, plan)


def remove(*, options: ActOptions | None = None) -> None:
    """Forget who the coldkey is."""

    async def plan(chain: SubstrateChain, signer: AccountKey) -> Plan:
        return Plan((Step(f"forget who {signer.address} is", calls.remove_identity()),))

    act(options, plan)


def show(*, whose: Whose | None = None) -> None:
    """Show who a coldkey says it is. Nobody checks it."""
    seen = whose or Whose()
    account = seen.account()
    stored = read_chain(seen.chain, lambda client: client.storage("Network", "ColdkeyIdentity", account))
    texts = {
        name: printable(value.decode(errors="replace"), 1024)
        for name, value in (stored.items() if isinstance(stored, Mapping) else ())
        if isinstance(value, bytes) and value not in (b"", calls.NOTHING.encode())
    }
    if seen.json:
        print(jsonlib.dumps({"address": checksum_address(account), **texts}))
        return
    print(checksum_address(account))
    for name, text in texts.items():
        print(f"  {name.replace('_', ' '):<13} {text}")
    if not texts:
        print("  says nothing about itself")
