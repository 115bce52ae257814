"""Spreading proofs of equivocation: whoever learns of one tells the nodes that hold the records of its key, so that
everybody who reads there is told."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from typing import Final

import trio

from mesh.dht.config import DhtConfig
from mesh.dht.peers import Peers
from mesh.errors import MeshError
from mesh.kad.equivocation import Equivocation
from mesh.kad.key import key_of_record
from mesh.kad.record import Slot
from mesh.kad.wire import Role
from mesh.peer import PeerID

log = logging.getLogger(__name__)

_MAX_TOLD: Final = 4096
"""Slots whose proof was passed on: many more than a store keeps, which forgets one for another."""
_MAX_PER_OWNER: Final = 8
"""Of these, one owner's: a liar is known by then, and others' proofs must get through."""


class ProofSpreader:
    """A bounded queue of proofs new here. `run` it. Each node passes a proof on once, when it is new to it, so that
    telling ends with as many messages as there are replicas, squared."""

    def __init__(self, peers: Peers, *, config: DhtConfig) -> None:
        self._peers = peers
        self._config = config
        self._told: OrderedDict[Slot, None] = OrderedDict()
        self._told_of: Counter[PeerID] = Counter()
        self._in, self._out = trio.open_memory_channel[Equivocation](config.max_proofs_queued)

    def offer(self, proof: Equivocation) -> None:
        """Tell others of this proof soon. One too many is told to nobody but those who read here."""
        if (
            self._peers.role is Role.SERVER
            and proof.slot not in self._told
            and self._told_of[proof.owner] < _MAX_PER_OWNER
        ):
            self._told[proof.slot] = None
            self._told_of[proof.owner] += 1
            if len(self._told) > _MAX_TOLD:
                gone, _ = self._told.popitem(last=False)
                self._told_of[gone.owner] -= 1
                if not self._told_of[gone.owner]:
                    del self._told_of[gone.owner]
            try:
                self._in.send_nowait(proof)
            except trio.WouldBlock:
                log.debug("dht.proof_not_spread", extra={"key": proof.first.key})

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell until cancelled."""
        task_status.started()
        async for proof in self._out:
            log.warning("%s signed two records for %r with one seq", proof.first.owner, proof.first.key)
            for info in self._peers.table.closest(key_of_record(proof.first.key), self._config.replicas):
                try:
                    await self._peers.tell_proofs(info, (proof.to_bytes(),))
                except MeshError as error:
                    log.debug("dht.proof_not_told", extra={"peer": str(info.peer_id), "error": str(error)})
