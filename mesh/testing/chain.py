"""FakeChain: the Chain protocol in memory, with enough of the network pallet's rules to run nodes in simulation.

Same errors by name, same epochs, elections by a seeded rng, and the same answers at old blocks. Simplified, on purpose:

- signatures are not made; the signer's account is trusted. One call is one extrinsic; the flat fee is FEE_PLANCK, and
  nothing for a propose or attest that succeeds.
- a subnet is activated without delegate stake; its slot is DESIGNATED_SLOTS plus its place among active subnets.
- payout of an epoch in consensus (at least 66 % of the validators attested): EMISSION_PLANCK by score to the nodes'
  stakes, and BASE_REWARD_PLANCK to the proposer's, without time factors, delegators or an owner's share. Out of
  consensus: nobody is paid and the proposer is slashed as in the pallet. Both round down.
- reputation falls by a tenth when a proposal in consensus pays others and leaves a node out, and when it pays a
  validator that is not among the 87.5 % or more who attested; by a twentieth when an elected node does not propose; for
  a proposal out of consensus by up to a tenth for each attestor and a twentieth more for the proposer. It never rises;
  below a tenth a node is removed.
- later nodes become Idle, Included and Validator after one, two and two epochs, without churn limits.
- delegate stake is a plain balance (a share is a planck); what is unbonded can be claimed an epoch later.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from mesh.chain import dialect as dialects
from mesh.chain.types import (
    FIRST_SUBNET_ID,
    MAX_ARGS_BYTES,
    ONE,
    Balance,
    BlockRef,
    EpochPosition,
    Event,
    NodeClass,
    Receipt,
    Score,
    Snapshot,
    Submission,
    SubnetInfo,
    SubnetNode,
    SubnetState,
)
from mesh.errors import (
    BlockUnavailable,
    CallRefused,
    ChainError,
    ChainUnavailable,
    ExtrinsicFailed,
    ExtrinsicInvalid,
    RemoteProtocolError,
)
from mesh.identity import AccountKey
from mesh.peer import PeerInfo

FEE_PLANCK: Final = 108_157_000
EXISTENTIAL_DEPOSIT_PLANCK: Final = 500
EMISSION_PLANCK: Final = 300_000_000_000_000_000
BASE_REWARD_PLANCK: Final = 10**18
DESIGNATED_SLOTS: Final = 3
MIN_NODES: Final = 3
MIN_ATTESTATION: Final = 66 * ONE // 100
SUPER_MAJORITY: Final = 875 * ONE // 1000
MIN_REPUTATION: Final = ONE // 10
SLASH: Final = 3_125 * ONE // 100_000
MAX_SLASH_PLANCK: Final = 10**18
ABSENT: Final = ONE // 20
LEFT_OUT: Final = ONE // 10
NOT_ATTESTED: Final = ONE // 10
REJECTED: Final = ONE // 20
ATTESTED_REJECTED: Final = ONE // 10
BLOCK_MS: Final = 6_000
GENESIS_MS: Final = 1_800_000_000_000
HISTORY_BLOCKS: Final = 4_096
"""Blocks back for which nodes, subnets and events can be read."""
_CLASS_EPOCHS: Final = {NodeClass.REGISTERED: 1, NodeClass.IDLE: 2, NodeClass.INCLUDED: 2}

_REGISTER_SUBNET: Final = ("max_cost", "subnet_data")
_ARGUMENTS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # call: (required, optional) arguments
    "System.remark": (("remark",), ()),
    "Balances.transfer_allow_death": (("dest", "value"), ()),
    "Balances.transfer_keep_alive": (("dest", "value"), ()),
    "Network.register_subnet": (_REGISTER_SUBNET, ()),
    "Network.activate_subnet": (("subnet_id",), ()),
    "Network.update_bootnodes": (("subnet_id", "add", "remove"), ()),
    "Network.register_subnet_node": (
        ("subnet_id", "hotkey", "peer_info", "delegate_reward_rate", "stake_to_be_added", "max_burn_amount"),
        ("bootnode_peer_info", "client_peer_info", "unique", "non_unique", "delegate_account"),
    ),
    "Network.remove_subnet_node": (("subnet_id", "subnet_node_id"), ()),
    "Network.add_stake": (("subnet_id", "subnet_node_id", "hotkey", "stake_to_be_added"), ()),
    "Network.remove_stake": (("subnet_id", "hotkey", "stake_to_be_removed"), ()),
    "Network.add_to_delegate_stake": (("subnet_id", "stake_to_be_added"), ()),
    "Network.remove_delegate_stake": (("subnet_id", "shares_to_be_removed"), ()),
    "Network.claim_unbondings": ((), ()),
    "Network.propose_attestation": (
        ("subnet_id", "data"),
        ("prioritize_queue_node_id", "remove_queue_node_id", "args", "attest_data"),
    ),
    "Network.attest": (("subnet_id",), ("attest_data",)),
}


@dataclass
class _Subnet:
    info: SubnetInfo
    bootnodes: dict[bytes, bytes]
    nodes: dict[int, SubnetNode] = field(default_factory=dict)
    next_node_id: int = 1
    elected: dict[int, int] = field(default_factory=dict)
    submissions: dict[int, Submission] = field(default_factory=dict)


@dataclass
class _Account:
    free: int = 0
    nonce: int = 0


@dataclass
class _Pending:
    """An extrinsic in the pool and, once in a block, what became of it."""

    call: str
    args: Mapping[str, object]
    signer: bytes
    digest: bytes
    done: trio.Event = field(default_factory=trio.Event)
    receipt: Receipt | None = None
    error: ChainError | None = None


@dataclass(frozen=True)
class _Block:
    ref: BlockRef
    events: tuple[Event, ...]
    subnets: Mapping[int, tuple[SubnetInfo, tuple[SubnetNode, ...]]]


class _Failed(Exception):
    """A rule of the pallet said no; the name is the pallet's."""


class Ledger:
    """The state behind any number of FakeChains. Not a Chain itself: `FakeChain(ledger)` is a node's view of it."""

    def __init__(self, *, seed: int = 0, epoch_length: int = 20, fund: Mapping[bytes, int] | None = None) -> None:
        self.epoch_length = epoch_length
        self.rng = random.Random(seed)
        self.accounts: dict[bytes, _Account] = {a: _Account(planck) for a, planck in (fund or {}).items()}
        self.minted: Counter[str] = Counter(genesis=sum((fund or {}).values()))
        """Planck made, by cause."""
        self.burned: Counter[str] = Counter()
        """Planck destroyed, by cause."""
        self.subnets: dict[int, _Subnet] = {}
        self.delegated: dict[tuple[bytes, int], int] = {}
        self.unbonding: dict[bytes, dict[int, int]] = {}
        self.owners: dict[bytes, bytes] = {}
        """Hotkey → coldkey."""
        self.pool: list[_Pending] = []
        self.moved = trio.Event()
        self.submitted = trio.Event()
        """Set, and replaced, when something enters the pool."""
        self._events: list[Event] = []
        self._rules: Mapping[str, Callable[[bytes, Mapping[str, object]], None]] = {
            "Network.register_subnet": self._register_subnet,
            "Network.activate_subnet": self._activate_subnet,
            "Network.update_bootnodes": self._update_bootnodes,
            "Network.register_subnet_node": self._register_node,
            "Network.remove_subnet_node": self._remove_node,
            "Network.add_stake": self._add_stake,
            "Network.remove_stake": self._remove_stake,
            "Network.add_to_delegate_stake": self._delegate,
            "Network.remove_delegate_stake": self._undelegate,
            "Network.claim_unbondings": self._claim,
            "Network.propose_attestation": self._propose,
            "Network.attest": self._attest,
            "Balances.transfer_allow_death": self._transfer,
            "Balances.transfer_keep_alive": self._transfer,
            "System.remark": _remark,
        }
        genesis = hashlib.blake2b(f"mesh fake chain {seed} {epoch_length}".encode(), digest_size=32).digest()
        self.genesis = genesis
        self.blocks: list[_Block] = [_Block(BlockRef(0, genesis), (), {})]
        self._now = 0

    @property
    def best(self) -> _Block:
        """The newest block."""
        return self.blocks[-1]

    @property
    def number(self) -> int:
        """Number of the newest block; while one is made, still its parent's."""
        return self.blocks[-1].ref.number

    def issuance(self) -> int:
        """Planck there is, in accounts, stakes, delegated and unbonding: what was minted less what was burned."""
        return (
            sum(account.free for account in self.accounts.values())
            + sum(node.stake_planck for subnet in self.subnets.values() for node in subnet.nodes.values())
            + sum(self.delegated.values())
            + sum(sum(claims.values()) for claims in self.unbonding.values())
        )

    def block(self, at: bytes | None) -> _Block:
        """A block by hash, the newest without one. Raises ChainError."""
        if at is None:
            return self.best
        for block in reversed(self.blocks):
            if block.ref.hash == at:
                return block
        raise BlockUnavailable(f"the chain does not know the block 0x{at.hex()}, or not any more", number=None)

    def block_number(self, number: int) -> _Block:
        """A block by number. Raises ChainError when there is none yet, or not any more."""
        index = number - self.blocks[0].ref.number
        if not 0 <= index < len(self.blocks):
            raise BlockUnavailable(
                f"the chain has no block {number}{' yet' if index >= 0 else ' any more'}", number=number
            )
        return self.blocks[index]

    def add(self, pending: _Pending) -> None:
        """Take an extrinsic into the pool."""
        self.pool.append(pending)
        event, self.submitted = self.submitted, trio.Event()
        event.set()

    def new_block(self) -> BlockRef:
        """Make a block of everything in the pool, in the order it came."""
        parent = self.best.ref
        number = parent.number + 1
        self._events = []
        self._now = number
        for subnet_id in sorted(self.subnets):
            self._begin_block(self.subnets[subnet_id])
        pool, self.pool = self.pool, []
        hasher = hashlib.blake2b(parent.hash + number.to_bytes(8, "big"), digest_size=32)
        for pending in pool:
            hasher.update(pending.digest)
        ref = BlockRef(number, hasher.digest())
        for pending in pool:
            self._apply(pending, ref)
        subnets = {i: (s.info, tuple(s.nodes[n] for n in sorted(s.nodes))) for i, s in self.subnets.items()}
        self.blocks.append(_Block(ref, tuple(self._events), subnets))
        if len(self.blocks) > HISTORY_BLOCKS:
            del self.blocks[0]
        for pending in pool:
            pending.done.set()
        event, self.moved = self.moved, trio.Event()
        event.set()
        return ref

    # --- blocks and extrinsics ----------------------------------------------------------------------------------

    def _apply(self, pending: _Pending, ref: BlockRef) -> None:
        account = self.accounts.setdefault(pending.signer, _Account())
        account.nonce += 1
        account.free -= FEE_PLANCK
        start = len(self._events)
        fee = FEE_PLANCK
        try:
            self._rules[pending.call](pending.signer, pending.args)
        except _Failed as error:
            del self._events[start:]
            pending.error = ExtrinsicFailed(pending.call.partition(".")[0], str(error))
            self._emit("System.ExtrinsicFailed", dispatch_error=str(error))
        except CallRefused as error:
            pending.error = error
        except (KeyError, TypeError, AttributeError) as error:
            pending.error = CallRefused(f"{pending.call}: its arguments have the wrong shape ({error!r})")
        else:
            if pending.call in ("Network.propose_attestation", "Network.attest"):
                account.free += FEE_PLANCK
                fee = 0
            self._emit("System.ExtrinsicSuccess")
        self.burned["fee"] += fee
        pending.receipt = Receipt(pending.digest, ref, fee, tuple(self._events[start:]))

    def _emit(self, event: str, fields: Mapping[str, object] | None = None, /, **named: object) -> None:
        pallet, _, name = event.rpartition(".")
        self._events.append(Event(pallet or "Network", name, {**(fields or {}), **named}))

    def position(self, subnet: _Subnet) -> EpochPosition:
        """Where the block being made stands."""
        return EpochPosition.of(self._now, slot=subnet.info.slot or 0, length=self.epoch_length)

    def _begin_block(self, subnet: _Subnet) -> None:
        slot = subnet.info.slot
        if slot is None or self._now < slot or (self._now - slot) % self.epoch_length:
            return
        epoch = self.position(subnet).epoch
        if epoch > 0:
            self._settle(subnet, epoch - 1)
        self._graduate(subnet, epoch)
        electable = [n.node_id for n in _validators(subnet, epoch)]
        if electable:
            subnet.elected[epoch] = self.rng.choice(sorted(electable))
        for old in [e for e in subnet.submissions if e < epoch - 64]:
            subnet.submissions.pop(old)
            subnet.elected.pop(old, None)

    def _settle(self, subnet: _Subnet, epoch: int) -> None:
        elected, submission = subnet.elected.get(epoch), subnet.submissions.get(epoch)
        if submission is None:
            if elected in subnet.nodes:
                self._punish(subnet, elected, ABSENT)
            return
        electable = max(1, len(_validators(subnet, epoch)))
        ratio = min(ONE, len(submission.attests) * ONE // electable)
        if ratio < MIN_ATTESTATION:
            self._reject(subnet, submission, ratio)
            return
        total = sum(score.score for score in submission.scores)
        if submission.proposer_node_id in subnet.nodes:
            self._mint(subnet, submission.proposer_node_id, BASE_REWARD_PLANCK, "proposer_reward")
        if not total:
            return  # agreed to pay nobody but the proposer
        scored = {score.node_id: score.score for score in submission.scores}
        rewards: list[tuple[int, int]] = []
        for node_id in sorted(subnet.nodes):
            node = subnet.nodes[node_id]
            if node.node_class < NodeClass.INCLUDED or node.start_epoch > epoch:
                continue
            if node_id not in scored:
                self._punish(subnet, node_id, LEFT_OUT)
            elif node.node_class is NodeClass.VALIDATOR:
                reward = EMISSION_PLANCK * scored[node_id] // total
                self._mint(subnet, node_id, reward, "node_rewards")
                rewards.append((node_id, reward))
                if node_id not in submission.attests and ratio >= SUPER_MAJORITY:
                    self._punish(subnet, node_id, NOT_ATTESTED)
        self._emit("SubnetRewards", subnet_id=subnet.info.subnet_id, node_rewards=rewards)

    def _reject(self, subnet: _Subnet, submission: Submission, ratio: int) -> None:
        """Too few attested: the proposer is slashed, and it and its attestors lose reputation, by the shortfall."""
        shortfall = ONE - ratio * ONE // MIN_ATTESTATION
        proposer = subnet.nodes.get(submission.proposer_node_id)
        if proposer is not None:
            slash = min(proposer.stake_planck * SLASH // ONE * shortfall // ONE, MAX_SLASH_PLANCK)
            self._pay(subnet, proposer.node_id, -slash)
            self.burned["slash"] += slash
            self._emit("Slashing", subnet_id=subnet.info.subnet_id, account_id=proposer.hotkey, amount=slash)
        self._punish(subnet, submission.proposer_node_id, REJECTED * shortfall // ONE)
        for node_id in submission.attests:
            self._punish(subnet, node_id, ATTESTED_REJECTED * shortfall // ONE)

    def _graduate(self, subnet: _Subnet, epoch: int) -> None:
        for node in list(subnet.nodes.values()):
            wait = _CLASS_EPOCHS.get(node.node_class)
            if wait is not None and subnet.info.state is SubnetState.ACTIVE and epoch >= node.start_epoch + wait:
                self._set(subnet, replace(node, node_class=NodeClass(node.node_class + 1), start_epoch=epoch))

    def _set(self, subnet: _Subnet, node: SubnetNode) -> None:
        subnet.nodes[node.node_id] = node

    def _mint(self, subnet: _Subnet, node_id: int, planck: int, cause: str) -> None:
        self._pay(subnet, node_id, planck)
        self.minted[cause] += planck

    def _pay(self, subnet: _Subnet, node_id: int, planck: int) -> None:
        node = subnet.nodes[node_id]
        self._set(subnet, replace(node, stake_planck=node.stake_planck + planck))

    def _punish(self, subnet: _Subnet, node_id: int | None, part: int) -> None:
        node = subnet.nodes.get(node_id) if node_id is not None else None
        if node is None:
            return
        reputation = node.reputation * (ONE - part) // ONE
        self._set(subnet, replace(node, reputation=reputation))
        if reputation < MIN_REPUTATION:
            self._drop(subnet, node)

    def _drop(self, subnet: _Subnet, node: SubnetNode) -> None:
        del subnet.nodes[node.node_id]
        self._unbond(node.coldkey, node.stake_planck)
        self.owners.pop(node.hotkey, None)
        self._emit("SubnetNodeRemoved", subnet_id=subnet.info.subnet_id, subnet_node_id=node.node_id)

    def _unbond(self, account: bytes, planck: int) -> None:
        claim = self._now + self.epoch_length
        ledger = self.unbonding.setdefault(account, {})
        ledger[claim] = ledger.get(claim, 0) + planck

    def _spend(self, account: bytes, planck: int, error: str) -> None:
        held = self.accounts.setdefault(account, _Account())
        if planck < 0 or held.free < planck:
            raise _Failed(error)
        held.free -= planck

    # --- calls ----------------------------------------------------------------------------------------------------

    def _subnet(self, args: Mapping[str, object]) -> _Subnet:
        found = self.subnets.get(_int(args, "subnet_id"))
        if found is None:
            raise _Failed("InvalidSubnetId")
        return found

    def _transfer(self, origin: bytes, args: Mapping[str, object]) -> None:
        value = _int(args, "value")
        self._spend(origin, value, "InsufficientBalance")
        self.accounts.setdefault(_bytes(args, "dest"), _Account()).free += value
        self._emit("Balances.Transfer", {"from": origin, "to": args["dest"], "amount": value})

    def _register_subnet(self, origin: bytes, args: Mapping[str, object]) -> None:
        data = args["subnet_data"]
        if not isinstance(data, Mapping):
            raise CallRefused("Network.register_subnet.subnet_data takes named values")
        name = data["name"]
        if any(s.info.name.encode() == name for s in self.subnets.values()):
            raise _Failed("SubnetNameExist")
        if not data["bootnodes"]:
            raise _Failed("BootnodesEmpty")
        subnet_id = FIRST_SUBNET_ID + len(self.subnets)
        info = SubnetInfo(
            subnet_id=subnet_id,
            friendly_id=len(self.subnets) + 1,
            name=name.decode() if isinstance(name, bytes) else str(name),
            state=SubnetState.REGISTERED,
            start_epoch=2**32 - 1,
            slot=None,
            owner=origin,
            min_stake_planck=_int(data, "min_stake"),
            max_stake_planck=_int(data, "max_stake"),
        )
        bootnodes = data["bootnodes"]
        self.subnets[subnet_id] = _Subnet(info, dict(bootnodes))
        self._emit("SubnetRegistered", owner=origin, name=name, subnet_id=subnet_id)

    def _activate_subnet(self, origin: bytes, args: Mapping[str, object]) -> None:
        subnet = self.subnets.get(_int(args, "subnet_id"))
        if subnet is None or subnet.info.owner != origin:
            raise _Failed("NotSubnetOwner")
        if subnet.info.state is not SubnetState.REGISTERED:
            raise _Failed("SubnetMustBeRegistering")
        active = sum(1 for s in self.subnets.values() if s.info.slot is not None)
        if len(subnet.nodes) < MIN_NODES or DESIGNATED_SLOTS + active >= self.epoch_length:
            raise _Failed("SubnetActivationConditionsNotMetYet")
        slot = DESIGNATED_SLOTS + active
        epoch = self._now // self.epoch_length + 1
        subnet.info = replace(subnet.info, state=SubnetState.ACTIVE, slot=slot, start_epoch=epoch)
        self._emit("SubnetActivated", subnet_id=subnet.info.subnet_id)

    def _update_bootnodes(self, origin: bytes, args: Mapping[str, object]) -> None:
        subnet = self._subnet(args)
        if subnet.info.owner != origin:
            raise _Failed("InvalidAccess")
        add, remove = args["add"], args["remove"]
        if isinstance(add, Mapping):
            subnet.bootnodes.update(add)
        for peer in remove if isinstance(remove, Sequence) else ():
            subnet.bootnodes.pop(peer, None)

    def _register_node(self, origin: bytes, args: Mapping[str, object]) -> None:
        subnet, hotkey = self._subnet(args), _bytes(args, "hotkey")
        if origin == hotkey:
            raise _Failed("ColdkeyMatchesHotkey")
        if hotkey in self.owners:
            raise _Failed("HotkeyHasOwner")
        peers = {}
        for name, error in (
            ("peer_info", "InvalidPeerId"),
            ("bootnode_peer_info", "InvalidBootnodePeerId"),
            ("client_peer_info", "InvalidClientPeerId"),
        ):
            info = args.get(name)
            try:
                raw = info["peer_id"] if isinstance(info, Mapping) else None
                peers[name] = None if info is None else dialects.parse_peer_id(raw if isinstance(raw, bytes) else b"")
            except RemoteProtocolError:
                raise _Failed(error) from None
        peer = peers["peer_info"]
        if peer is None:
            raise _Failed("InvalidPeerId")
        if any(node.peer_id == peer for node in subnet.nodes.values()):
            raise _Failed("PeerIdExist")
        stake = _int(args, "stake_to_be_added")
        if stake < subnet.info.min_stake_planck:
            raise _Failed("MinStakeNotReached")
        if stake > subnet.info.max_stake_planck:
            raise _Failed("MaxStakeReached")
        self._spend(origin, stake, "NotEnoughBalanceToStake")
        registering = subnet.info.state is SubnetState.REGISTERED
        node = SubnetNode(
            node_id=subnet.next_node_id,
            coldkey=origin,
            hotkey=hotkey,
            peer_id=peer,
            bootnode_peer_id=peers["bootnode_peer_info"],
            client_peer_id=peers["client_peer_info"],
            node_class=NodeClass.VALIDATOR if registering else NodeClass.REGISTERED,
            start_epoch=0 if registering else self.position(subnet).epoch + 1,
            stake_planck=stake,
            reputation=ONE,
        )
        subnet.next_node_id += 1
        self._set(subnet, node)
        self.owners[hotkey] = origin
        subnet_id = subnet.info.subnet_id
        self._emit("StakeAdded", {"0": subnet_id, "1": origin, "2": hotkey, "3": stake})
        if registering:
            self._emit("SubnetNodeActivated", subnet_id=subnet_id, subnet_node_id=node.node_id)
        else:
            self._emit("SubnetNodeRegistered", subnet_id=subnet_id, subnet_node_id=node.node_id, hotkey=hotkey)

    def _node(self, subnet: _Subnet, node_id: int, origin: bytes) -> SubnetNode:
        node = subnet.nodes.get(node_id)
        if node is None:
            raise _Failed("InvalidSubnetNodeId")
        if origin not in (node.coldkey, node.hotkey):
            raise _Failed("NotKeyOwner")
        return node

    def _remove_node(self, origin: bytes, args: Mapping[str, object]) -> None:
        subnet = self._subnet(args)
        node = self._node(subnet, _int(args, "subnet_node_id"), origin)
        if subnet.elected.get(self.position(subnet).epoch) == node.node_id:
            raise _Failed("ElectedValidatorCannotRemove")
        self._drop(subnet, node)

    def _add_stake(self, origin: bytes, args: Mapping[str, object]) -> None:
        subnet = self._subnet(args)
        node = self._node(subnet, _int(args, "subnet_node_id"), origin)
        amount = _int(args, "stake_to_be_added")
        if node.stake_planck + amount > subnet.info.max_stake_planck:
            raise _Failed("MaxStakeReached")
        self._spend(origin, amount, "NotEnoughBalanceToStake")
        self._pay(subnet, node.node_id, amount)
        names = {"0": subnet.info.subnet_id, "1": origin, "2": node.hotkey, "3": amount}
        self._emit("StakeAdded", names)

    def _remove_stake(self, origin: bytes, args: Mapping[str, object]) -> None:
        subnet, hotkey = self._subnet(args), _bytes(args, "hotkey")
        node = next((n for n in subnet.nodes.values() if n.hotkey == hotkey), None)
        if node is None or node.coldkey != origin:
            raise _Failed("NotKeyOwner")
        amount = _int(args, "stake_to_be_removed")
        if amount > node.stake_planck:
            raise _Failed("NotEnoughStakeToWithdraw")
        if node.stake_planck - amount < subnet.info.min_stake_planck:
            raise _Failed("MinStakeNotReached")
        if subnet.elected.get(self.position(subnet).epoch) == node.node_id:
            raise _Failed("ElectedValidatorCannotUnstake")
        self._pay(subnet, node.node_id, -amount)
        self._unbond(origin, amount)
        names = {"0": subnet.info.subnet_id, "1": origin, "2": hotkey, "3": amount}
        self._emit("StakeRemoved", names)

    def _delegate(self, origin: bytes, args: Mapping[str, object]) -> None:
        subnet, amount = self._subnet(args), _int(args, "stake_to_be_added")
        self._spend(origin, amount, "NotEnoughBalanceToStake")
        key = (origin, subnet.info.subnet_id)
        self.delegated[key] = self.delegated.get(key, 0) + amount
        self._emit("SubnetDelegateStakeAdded", {"0": key[1], "1": origin, "2": amount})

    def _undelegate(self, origin: bytes, args: Mapping[str, object]) -> None:
        key, amount = (origin, self._subnet(args).info.subnet_id), _int(args, "shares_to_be_removed")
        if not 0 < amount <= self.delegated.get(key, 0):
            raise _Failed("NotEnoughStakeToWithdraw")
        self.delegated[key] -= amount
        self._unbond(origin, amount)
        self._emit("SubnetDelegateStakeRemoved", {"0": key[1], "1": origin, "2": amount})

    def _claim(self, origin: bytes, args: Mapping[str, object]) -> None:
        ledger = self.unbonding.get(origin, {})
        due = [block for block in ledger if block <= self._now]
        if not due:
            raise _Failed("NoStakeUnbondingsOrCooldownNotMet")
        self.accounts[origin].free += sum(ledger.pop(block) for block in due)

    def _propose(self, origin: bytes, args: Mapping[str, object]) -> None:
        subnet = self._subnet(args)
        slot = subnet.info.slot
        if slot is None or self._now < slot:
            raise _Failed("SubnetEpochDataIsNone")
        epoch = self.position(subnet).epoch
        node_id = subnet.elected.get(epoch)
        if node_id is None:
            raise _Failed("NoElectedValidator")
        if node_id not in subnet.nodes or subnet.nodes[node_id].hotkey != origin:
            raise _Failed("InvalidValidator")
        if epoch in subnet.submissions:
            raise _Failed("SubnetRewardsAlreadySubmitted")
        data = args["data"]
        lowest: dict[int, int] = {}
        for entry in data if isinstance(data, Sequence) else ():
            scored = subnet.nodes.get(entry["subnet_node_id"])
            if scored is not None and scored.node_class >= NodeClass.INCLUDED and scored.start_epoch <= epoch:
                lowest[scored.node_id] = min(entry["score"], lowest.get(scored.node_id, entry["score"]))
        note = args.get("args")
        if isinstance(note, bytes) and len(note) > MAX_ARGS_BYTES:
            raise CallRefused(f"Network.propose_attestation.args takes {MAX_ARGS_BYTES} bytes, not {len(note)}")
        subnet.submissions[epoch] = Submission(
            proposer_node_id=node_id,
            block=self._now,
            scores=tuple(Score(i, lowest[i]) for i in lowest),
            args=note if isinstance(note, bytes) else None,
            attests=(node_id,),
        )
        self._emit("ValidatorSubmission", subnet_id=subnet.info.subnet_id, account_id=origin, epoch=epoch)

    def _attest(self, origin: bytes, args: Mapping[str, object]) -> None:
        subnet = self._subnet(args)
        epoch = self.position(subnet).epoch
        node = next((n for n in subnet.nodes.values() if n.hotkey == origin), None)
        if node is None:
            raise _Failed("InvalidHotkeySubnetNodeId")
        if node.node_class is not NodeClass.VALIDATOR or node.start_epoch > epoch:
            raise _Failed("InvalidSubnetNodeClassification")
        submission = subnet.submissions.get(epoch)
        if submission is None:
            raise _Failed("InvalidSubnetConsensusSubmission")
        if node.node_id in submission.attests:
            raise _Failed("AlreadyAttested")
        attests = tuple(sorted((*submission.attests, node.node_id)))
        subnet.submissions[epoch] = replace(submission, attests=attests)
        fields = {"subnet_id": subnet.info.subnet_id, "subnet_node_id": node.node_id, "epoch": epoch}
        self._emit("Attestation", fields)


class FakeChain:
    """One node's view of a Ledger. `away` makes every question raise ChainUnavailable, as a chain out of reach does.

    With `block_time_s`, run() makes blocks by trio's clock (one, however many views run); without it `new_block()`
    does. Give every node a view of its own over one ledger.
    """

    def __init__(self, ledger: Ledger, *, block_time_s: float | None = None) -> None:
        self.ledger = ledger
        self.away = False
        self._block_time_s = block_time_s

    @property
    def genesis(self) -> bytes:
        """Hash of block 0: of the seed and the epoch length."""
        return self.ledger.genesis

    @property
    def epoch_length(self) -> int:
        """Blocks per epoch."""
        return self.ledger.epoch_length

    def new_block(self) -> BlockRef:
        """Make a block now."""
        return self.ledger.new_block()

    def new_blocks(self, until: int) -> BlockRef:
        """Make blocks until the best one has this number."""
        while self.ledger.number < until:
            self.ledger.new_block()
        return self.ledger.best.ref

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make blocks in time, or wait for ever."""
        task_status.started()
        if self._block_time_s is None:
            await trio.sleep_forever()
        start, first = trio.current_time(), self.ledger.number
        while True:
            made = self.ledger.number - first
            await trio.sleep_until(start + (made + 1) * self._block_time_s)
            if self.ledger.number - first == made:  # else another view made it
                self.ledger.new_block()

    def _reach(self) -> Ledger:
        if self.away:
            raise ChainUnavailable("the chain is out of reach (FakeChain.away)")
        return self.ledger

    async def head(self) -> BlockRef:
        """The best block."""
        return self._reach().best.ref

    async def finalized(self) -> BlockRef:
        """The best block's parent: a block is final when the next one is on top of it."""
        ledger = self._reach()
        return ledger.blocks[max(0, len(ledger.blocks) - 2)].ref

    async def block_hash(self, number: int) -> bytes:
        """Hash of a block. Raises ChainError when there is none yet."""
        return self._reach().block_number(number).ref.hash

    async def heads(self) -> AsyncIterator[BlockRef]:
        """New best blocks; a slow reader gets the newest only, and none come while the chain is away."""
        last: BlockRef | None = None
        while True:
            moved = self.ledger.moved
            best = self.ledger.best.ref
            if best != last and not self.away:
                last = best
                yield best
            else:
                await moved.wait()

    async def timestamp_ms(self) -> int:
        """GENESIS_MS and BLOCK_MS per block."""
        return GENESIS_MS + BLOCK_MS * self._reach().number

    async def resolve_subnet_id(self, subnet_id: int) -> int:
        """The real id of a friendly or real one. Raises ChainError when there is no such subnet."""
        for subnet in self._reach().subnets.values():
            if subnet_id in (subnet.info.subnet_id, subnet.info.friendly_id):
                return subnet.info.subnet_id
        raise ChainError(f"there is no subnet {subnet_id}")

    async def subnet(self, subnet_id: int, at: bytes | None = None) -> SubnetInfo:
        """Raises ChainError when there is no such subnet."""
        return self._at(subnet_id, at)[0]

    async def snapshot(self, subnet_id: int, at: BlockRef | None = None) -> Snapshot:
        """All registered nodes of a subnet at one block; none for a subnet that does not exist, as on the chain."""
        block = self._reach().block(at.hash if at else None)
        _, nodes = block.subnets.get(subnet_id, (None, ()))
        return Snapshot(subnet_id, block.ref, nodes)

    def _at(self, subnet_id: int, at: bytes | None) -> tuple[SubnetInfo, tuple[SubnetNode, ...]]:
        found = self._reach().block(at).subnets.get(subnet_id)
        if found is None:
            raise ChainError(f"there is no subnet {subnet_id}")
        return found

    async def bootnodes(self, subnet_id: int) -> tuple[PeerInfo, ...]:
        """Bootnodes listed by the subnet; malformed entries are left out."""
        subnet = self._reach().subnets.get(subnet_id)
        return dialects.bootnodes(dict(subnet.bootnodes)) if subnet else ()

    async def elected(self, subnet_id: int, epoch: int) -> int | None:
        """Node id elected to propose in subnet epoch `epoch`, or None."""
        subnet = self._reach().subnets.get(subnet_id)
        return subnet.elected.get(epoch) if subnet else None

    async def submission(self, subnet_id: int, epoch: int) -> Submission | None:
        """The proposal made in subnet epoch `epoch`, or None."""
        subnet = self._reach().subnets.get(subnet_id)
        return subnet.submissions.get(epoch) if subnet else None

    async def balance(self, account: bytes) -> Balance:
        """Free and reserved planck and the nonce."""
        held = self._reach().accounts.get(account, _Account())
        return Balance(held.free, 0, held.nonce)

    async def events(self, at: bytes) -> tuple[Event, ...]:
        """Events of the block with this hash."""
        return self._reach().block(at).events

    async def storage(self, pallet: str, item: str, *keys: object, at: bytes | None = None) -> object:
        """The few items that have no method of their own, at the best block. Raises CallRefused for any other."""
        ledger = self._reach()
        readers: dict[str, Callable[..., object]] = {
            "Timestamp.Now": lambda: GENESIS_MS + BLOCK_MS * ledger.number,
            "System.Number": lambda: ledger.number,
            "Network.TotalSubnetUids": lambda: FIRST_SUBNET_ID - 1 + len(ledger.subnets),
            "Network.HotkeyOwner": lambda hotkey: ledger.owners.get(hotkey, bytes(20)),
            "Network.AccountSubnetDelegateStakeShares": lambda a, s: ledger.delegated.get((a, s), 0),
            "Network.StakeUnbondingLedger": lambda a: dict(sorted(ledger.unbonding.get(a, {}).items())),
        }
        reader = readers.get(f"{pallet}.{item}")
        if reader is None or (at is not None and at != ledger.best.ref.hash):
            raise CallRefused(f"FakeChain has no storage item {pallet}.{item} at this block")
        try:
            return reader(*keys)
        except TypeError as error:
            raise CallRefused(f"{pallet}.{item} does not take {len(keys)} keys") from error

    async def storage_map(
        self, pallet: str, item: str, *keys: object, at: bytes | None = None
    ) -> Sequence[tuple[tuple[object, ...], object]]:
        """`Network.HotkeyOwner` at the best block. Raises CallRefused for any other item."""
        ledger = self._reach()
        if (pallet, item) != ("Network", "HotkeyOwner") or keys or at not in (None, ledger.best.ref.hash):
            raise CallRefused(f"FakeChain has no storage map {pallet}.{item} at this block")
        return [((hotkey,), ledger.owners[hotkey]) for hotkey in sorted(ledger.owners)]

    async def constant(self, pallet: str, name: str) -> object:
        """`Network.EpochLength` and `Balances.ExistentialDeposit`. Raises CallRefused for any other."""
        known = {"Network.EpochLength": self.epoch_length, "Balances.ExistentialDeposit": EXISTENTIAL_DEPOSIT_PLANCK}
        self._reach()
        if f"{pallet}.{name}" not in known:
            raise CallRefused(f"pallet {pallet} of FakeChain has no constant {name!r}")
        return known[f"{pallet}.{name}"]

    async def estimate_fee(self, call: str, args: Mapping[str, object], signer: AccountKey) -> int:
        """FEE_PLANCK. Raises CallRefused as `submit` does."""
        self._reach()
        _check_arguments(call if "." in call else f"Network.{call}", args)
        return FEE_PLANCK

    async def submit(self, call: str, args: Mapping[str, object], signer: AccountKey) -> Receipt:
        """Enter the pool and wait for the block. Raises CallRefused, ExtrinsicInvalid, ExtrinsicFailed."""
        name = call if "." in call else f"Network.{call}"
        ledger = self._reach()
        _check_arguments(name, args)
        account = ledger.accounts.get(signer.account_id, _Account())
        mine = [p for p in ledger.pool if p.signer == signer.account_id]
        if account.free < FEE_PLANCK * (len(mine) + 1):
            raise ExtrinsicInvalid(1010, "Invalid Transaction: Inability to pay some fees")
        nonce = account.nonce + len(mine)
        identity = b"|".join((name.encode(), repr(sorted(args.items())).encode(), signer.account_id))
        digest = hashlib.blake2b(identity + nonce.to_bytes(8, "big"), digest_size=32).digest()
        pending = _Pending(name, args, signer.account_id, digest)
        ledger.add(pending)
        await pending.done.wait()
        if pending.error is not None:
            raise pending.error
        assert pending.receipt is not None
        return pending.receipt

    async def propose(self, subnet_id: int, scores: Sequence[Score], *, args: bytes, hotkey: AccountKey) -> Receipt:
        """`propose_attestation`."""
        call = dialects.HotkeyDialect().propose(subnet_id, None, scores, args)
        return await self.submit(call.name, call.args, hotkey)

    async def attest(self, subnet_id: int, *, hotkey: AccountKey) -> Receipt:
        """`attest`."""
        call = dialects.HotkeyDialect().attest(subnet_id, None)
        return await self.submit(call.name, call.args, hotkey)


def _remark(origin: bytes, args: Mapping[str, object]) -> None:
    """Nothing but a fee."""


def _validators(subnet: _Subnet, epoch: int) -> list[SubnetNode]:
    return [n for n in subnet.nodes.values() if n.node_class is NodeClass.VALIDATOR and n.start_epoch <= epoch]


def _check_arguments(call: str, args: Mapping[str, object]) -> None:
    """Names only; a value of a wrong type raises CallRefused where it is used."""
    if call not in _ARGUMENTS:
        raise CallRefused(f"FakeChain has no call {call!r}; it has {', '.join(_ARGUMENTS)}")
    required, optional = _ARGUMENTS[call]
    unknown = sorted(name for name in args if name not in required + optional)
    if unknown:
        raise CallRefused(f"{call} has no argument {unknown[0]!r}; it takes {', '.join(required + optional)}")
    missing = [name for name in required if name not in args]
    if missing:
        raise CallRefused(f"{call} needs the argument {missing[0]!r}")
    for name in required:
        if name in _INTEGERS:
            _int(args, name)


_INTEGERS: Final = frozenset(
    ("subnet_id", "subnet_node_id", "value", "stake_to_be_added", "stake_to_be_removed", "shares_to_be_removed")
)


def _int(args: Mapping[str, object], name: str) -> int:
    value = args.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise CallRefused(f"{name} takes an integer from 0, not {value!r}")
    return value


def _bytes(args: Mapping[str, object], name: str) -> bytes:
    value = args.get(name)
    if not isinstance(value, bytes):
        raise CallRefused(f"{name} takes bytes, not {type(value).__name__}")
    return value
