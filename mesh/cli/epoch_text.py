"""How an epoch of a subnet stands, in words for people and in values for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mesh.rpc.frame import printable

if TYPE_CHECKING:
    from mesh.chain.reading import EpochView

MAX_SHOWN_NAME: Final = 64


def epoch_values(view: EpochView) -> dict[str, object]:
    """An epoch's state as JSON values."""
    proposal = view.proposal
    return {
        "block": view.block.number,
        "hash": "0x" + view.block.hash.hex(),
        "subnet_id": view.subnet.subnet_id,
        "friendly_id": view.subnet.friendly_id,
        "state": view.subnet.state.name.lower(),
        "epoch": view.epoch,
        "offset": view.position.offset if not view.is_over else None,
        "length": view.position.length,
        "open": list(view.open_windows()) if not view.is_over else [],
        "elected": view.elected,
        "proposal": None
        if proposal is None
        else {
            "node_id": proposal.proposer_node_id,
            "block": proposal.block,
            "scores": {str(score.node_id): str(score.score) for score in proposal.scores},
            "claim": claim_values(proposal.args),
        },
        "electable": list(view.electable),
        "attested": list(view.attested),
        "needed": view.needed,
    }


def claim_values(args: bytes | None) -> dict[str, object] | None:
    """What a proposal's args say; None when they are of no form this program knows."""
    from mesh.consensus.wire import decode_args
    from mesh.errors import ConsensusError

    try:
        claim = decode_args(args)
    except ConsensusError:
        return None
    return {
        "epoch": claim.epoch,
        "snapshot": "0x" + claim.snapshot.hex(),
        "evidence": claim.evidence.hex() or None,
        "bytes": claim.size,
        "score": printable(claim.score, 128),
        "reason": printable(claim.reason, 128) or None,
    }


def epoch_lines(view: EpochView) -> list[tuple[str, str]]:
    """The same for people: what, and how it stands."""
    info = view.subnet
    lines = [
        ("subnet", f"{info.subnet_id} ({printable(info.name, MAX_SHOWN_NAME)}), {info.state.name.lower()}"),
        ("block", f"{view.block.number} 0x{view.block.hash.hex()[:16]}…"),
    ]
    if view.is_over:
        lines.append(("epoch", f"{view.epoch}, which is over (now {view.position.epoch})"))
    else:
        lines.append(("epoch", f"{view.epoch}, block {view.position.offset + 1} of {view.position.length}"))
        lines.append(("open", ", ".join(view.open_windows()) or "nothing"))
    lines.append(("elected", elected_text(view)))
    lines.append(("proposal", proposal_text(view)))
    if view.proposal is not None:
        lines.append(("attested", attested_text(view)))
        claim = claim_values(view.proposal.args)
        if claim is None:
            lines.append(("evidence", "the proposal says nothing about it that is understood here"))
        elif claim["evidence"]:
            lines.append(("evidence", f"{claim['evidence']} ({claim['bytes']} bytes), scored by {claim['score']}"))
        else:
            lines.append(("evidence", f"none: {claim['reason']}"))
    return lines


def elected_text(view: EpochView) -> str:
    """Who may propose."""
    if view.elected is None:
        return "nobody"
    node = view.node(view.elected)
    return f"node {view.elected}" + ("" if node is None else f" ({node.peer_id})")


def proposal_text(view: EpochView) -> str:
    """What was proposed, or whether it still can be."""
    proposal = view.proposal
    if proposal is None:
        return "none was made" if view.is_over else "none yet"
    return f"by node {proposal.proposer_node_id} in block {proposal.block}: {len(proposal.scores)} scores"


def attested_text(view: EpochView) -> str:
    """How many agree."""
    agreed, total = len(view.attested), len(view.electable)
    return f"{agreed} of {total} validators, {view.needed} are needed" + (": enough" if agreed >= view.needed else "")
