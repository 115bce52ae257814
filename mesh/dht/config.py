"""Bounds and habits of a DHT node."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from mesh.dht.ipfs import IpfsConfig
from mesh.kad.lookup import LookupConfig
from mesh.kad.patience import PatienceConfig
from mesh.kad.providers import ProviderConfig
from mesh.kad.routing import RoutingConfig
from mesh.kad.schedule import ScheduleConfig
from mesh.kad.store import StoreConfig
from mesh.kad.validator import ValidatorConfig
from mesh.kad.wire import Role


class DhtConfig(BaseModel):
    """Bounds and habits of a DHT node. Defaults marked unmeasured are guesses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role = Field(default=Role.SERVER, description="what this node does for others")
    replicas: int = Field(default=5, ge=1, le=20, description="r: how many of the closest peers hold a record")
    read_width: int = Field(
        default=6, ge=1, le=20, description="how many of the closest peers must have answered a get (unmeasured)"
    )
    miss_width: int = Field(
        default=20, ge=1, le=20, description="how many must have answered before a get says that nothing is there"
    )
    refresh_width: int = Field(
        default=5, ge=1, le=20, description="peers looked for to refresh a bucket: enough to meet some of it"
    )
    request_timeout_s: float = Field(default=5.0, gt=0, description="one request")
    operation_timeout_s: float = Field(default=20.0, gt=0, description="one get, put or find in all")
    bootstrap_timeout_s: float = Field(default=5.0, gt=0, description="the first attempt to join, before started()")
    retry_min_s: float = Field(default=1.0, gt=0, description="first pause after a failed bootstrap")
    retry_max_s: float = Field(default=60.0, gt=0, description="longest pause after failed bootstraps")
    rejoin_s: float = Field(
        default=60.0, gt=0, description="how often bootnodes and cached peers missing in the table are tried"
    )
    peer_cache: int = Field(default=128, ge=0, description="peers kept on disk to come back to")
    max_page_bytes: int = Field(default=1024 * 1024, ge=1, description="records in one answer to a member")
    max_guest_page_bytes: int = Field(default=128 * 1024, ge=1, description="records in one answer to a guest")
    max_get_bytes: int = Field(
        default=16 * 2**20, ge=1, description="records one peer may answer a get with, over all pages"
    )
    max_parallel_keys: int = Field(default=64, ge=1, description="keys looked up or stored at once by *_many")
    max_parallel_stores: int = Field(default=16, ge=1, description="peers stored at, at once, when given by name")
    cache_s: float = Field(default=30.0, ge=0, description="how old an answer a get for the first valid may be")
    cache_bytes: int = Field(default=4 * 2**20, ge=0, description="records of answers kept for that")
    watch_s: float = Field(default=10.0, gt=0, description="how often a watched key is looked up")
    max_watched_records: int = Field(default=8192, ge=1, description="records of one key that a watch remembers")
    provide_s: float = Field(default=1800.0, gt=0, description="how often we say again what we provide")
    max_provided: int = Field(default=4096, ge=1, description="keys we provide")
    max_proofs_queued: int = Field(default=64, ge=1, description="equivocations waiting to be told to others")
    member_finds_per_s: float = Field(default=200.0, gt=0, description="find requests of one member")
    guest_finds_per_s: float = Field(default=5.0, gt=0, description="find requests of one guest")
    all_guest_finds_per_s: float = Field(default=50.0, gt=0, description="find requests of all guests together")
    max_callers: int = Field(default=1024, ge=1, description="callers whose rate is remembered")
    shun_s: float = Field(default=600.0, ge=0, description="how long a peer that broke the protocol is not asked")
    max_shunned: int = Field(default=1024, ge=1, description="such peers remembered")
    max_pings: int = Field(default=256, ge=1, description="peers waiting to be pinged")
    max_gifts: int = Field(default=256, ge=1, description="peers waiting to be given records they lack")
    handover_s: float = Field(default=600.0, ge=0, description="a peer that comes anew is handed records no oftener")
    max_gift_bytes: int = Field(default=32 * 2**20, ge=1, description="records waiting to be given, all peers together")
    max_handover_records: int = Field(default=1024, ge=1, description="records given to one new peer")
    expire_s: float = Field(default=30.0, gt=0, description="how often expired records are dropped")
    routing: RoutingConfig = Field(default=RoutingConfig(), description="the routing table")
    lookup: LookupConfig = Field(default=LookupConfig(), description="lookups")
    store: StoreConfig = Field(default=StoreConfig(), description="records held")
    validator: ValidatorConfig = Field(default=ValidatorConfig(), description="record checks")
    patience: PatienceConfig = Field(default=PatienceConfig(), description="how long a lookup waits for a peer")
    providers: ProviderConfig = Field(default=ProviderConfig(), description="who provides what, as others say")
    ipfs: IpfsConfig | None = Field(
        default=IpfsConfig(), description="how other libp2p nodes take part over /ipfs/kad/1.0.0; none: not at all"
    )
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="refresh and republish")
