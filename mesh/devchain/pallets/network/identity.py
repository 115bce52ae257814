"""Who a coldkey says it is: free texts under a name that nobody else has. The chain checks none of it."""

from __future__ import annotations

from mesh.devchain.pallet import Context, Dispatch
from mesh.devchain.pallets.network import storage as s
from mesh.devchain.pallets.network.stake import check_unpaused


def register_or_update_identity(ctx: Context, origin: bytes, *, hotkey: bytes, **fields: bytes) -> None:
    """Call 63, signed by a coldkey that has a hotkey. Every field must say something."""
    check_unpaused(ctx)
    if not ctx.has(s.HotkeyOwner, hotkey) or ctx.get(s.HotkeyOwner, hotkey) != origin:
        raise Dispatch("NotKeyOwner")
    if not all(fields.values()):
        raise Dispatch("IdentityFieldEmpty")
    name = fields["name"]
    if ctx.has(s.ColdkeyIdentityNameOwner, name) and ctx.get(s.ColdkeyIdentityNameOwner, name) != origin:
        raise Dispatch("IdentityTaken")
    if ctx.has(s.ColdkeyIdentity, origin):
        ctx.remove(s.ColdkeyIdentityNameOwner, ctx.get(s.ColdkeyIdentity, origin)["name"])
    ctx.put(s.ColdkeyIdentityNameOwner, name, value=origin)
    ctx.put(s.ColdkeyIdentity, origin, value=fields)
    ctx.emit("IdentityRegistered", coldkey=origin, identity=fields)


def remove_identity(ctx: Context, origin: bytes) -> None:
    """Call 64: forget the caller's identity; its name is free. Where there is none, an empty one is removed."""
    check_unpaused(ctx)
    gone = ctx.get(s.ColdkeyIdentity, origin)
    ctx.remove(s.ColdkeyIdentity, origin)
    ctx.remove(s.ColdkeyIdentityNameOwner, gone["name"])
    ctx.emit("IdentityRemoved", coldkey=origin, identity=gone)
