"""Every storage item of the Network pallet (dialect W): name, keys, hashers, value and default as the network
declares them.

The order is the metadata's. An item's Python name is its name on the chain. Items that no call declared here
writes are here all the same: clients read them, and they answer with their defaults.
"""

from __future__ import annotations

from typing import Any, Final

from mesh.devchain.pallet import Hasher, StorageItem
from mesh.devchain.pallets.network import types as t
from mesh.devchain.pallets.network.economics import ONE
from mesh.devchain.scale import (
    Newtype,
    Type,
    account_id,
    boolean,
    bounded_bytes,
    btree_map,
    btree_set,
    bytes_,
    h256,
    i128,
    opaque_peer_id,
    u32,
    u64,
    u128,
    vec,
)

_ID = Hasher.IDENTITY
_BL = Hasher.BLAKE2_128_CONCAT

Keys = tuple[tuple[Hasher, Type], ...]

_SUBNET: Keys = ((_ID, u32),)
_PAIR: Keys = ((_ID, u32), (_ID, u32))
_ACCOUNT: Keys = ((_BL, account_id),)
_ACCOUNT_SUBNET: Keys = ((_BL, account_id), (_ID, u32))
_BYTES: Keys = ((_BL, bytes_),)
_PEER: Keys = ((_ID, u32), (_BL, opaque_peer_id))


def _item(name: str, value: Type, keys: Keys = (), **given: Any) -> StorageItem:
    return StorageItem(name, value=value, keys=keys, **given)


def _bounded(inner: Type) -> Type:
    return Newtype("bounded_collections::bounded_vec::BoundedVec", inner, params=(("T", u32), ("S", None)))


TotalSubnetUids = _item("TotalSubnetUids", u32, default=128_000)
SubnetNetFlow = _item("SubnetNetFlow", i128, _SUBNET)
SubnetIdFriendlyUid = _item("SubnetIdFriendlyUid", u32, _SUBNET, optional=True)
FriendlyUidSubnetId = _item("FriendlyUidSubnetId", u32, _SUBNET, optional=True)
TotalSubnets = _item("TotalSubnets", u32)
TotalActiveSubnets = _item("TotalActiveSubnets", u32)
SubnetsData = _item("SubnetsData", t.subnet_data, _SUBNET, optional=True)
SubnetRegistrationEpoch = _item("SubnetRegistrationEpoch", u32, _SUBNET, optional=True)
SubnetOwner = _item("SubnetOwner", account_id, _SUBNET, optional=True)
SubnetPauseCooldownEpochs = _item("SubnetPauseCooldownEpochs", u32, default=21_900)
PreviousSubnetPauseEpoch = _item("PreviousSubnetPauseEpoch", u32, _SUBNET)
PrevSubnetActivationEpoch = _item("PrevSubnetActivationEpoch", u32)
LastRegistrationCost = _item("LastRegistrationCost", u128, default=ONE)
MinRegistrationCost = _item("MinRegistrationCost", u128, default=10**17)
LastSubnetRegistrationBlock = _item("LastSubnetRegistrationBlock", u32)
SubnetSlot = _item("SubnetSlot", u32, _SUBNET, optional=True)
SlotAssignment = _item("SlotAssignment", u32, _SUBNET, optional=True)
AssignedSlots = _item("AssignedSlots", btree_set(u32))
SubnetNodeElectionSlots = _item("SubnetNodeElectionSlots", vec(u32), _SUBNET)
EmergencySubnetNodeElectionData = _item(
    "EmergencySubnetNodeElectionData", t.emergency_validators, _SUBNET, optional=True
)
MaxEmergencySubnetNodes = _item("MaxEmergencySubnetNodes", u32, default=64)
MaxEmergencyValidatorEpochsMultiplier = _item("MaxEmergencyValidatorEpochsMultiplier", u128, default=2 * ONE)
TotalSubnetElectableNodes = _item("TotalSubnetElectableNodes", u32, _SUBNET)
TotalElectableNodes = _item("TotalElectableNodes", u32)
NodeSlotIndex = _item("NodeSlotIndex", u32, _PAIR, optional=True)
TotalNodes = _item("TotalNodes", u32)
TotalActiveNodes = _item("TotalActiveNodes", u32)
TotalSubnetNodes = _item("TotalSubnetNodes", u32, _SUBNET)
TotalActiveSubnetNodes = _item("TotalActiveSubnetNodes", u32, _SUBNET)
RegistrationCostDecayBlocks = _item("RegistrationCostDecayBlocks", u32, default=438_290)
RegistrationCostAlpha = _item("RegistrationCostAlpha", u128, default=5 * 10**17)
NewRegistrationCostMultiplier = _item("NewRegistrationCostMultiplier", u128, default=2 * ONE)
MaxSubnetPauseEpochs = _item("MaxSubnetPauseEpochs", u32, default=2190)
MinSubnetRemovalInterval = _item("MinSubnetRemovalInterval", u32, default=10)
MaxSubnetRemovalInterval = _item("MaxSubnetRemovalInterval", u32, default=10)
DelegateStakeSubnetRemovalInterval = _item("DelegateStakeSubnetRemovalInterval", u32, default=2)
SubnetRegistrationEpochs = _item("SubnetRegistrationEpochs", u32, default=5053)
MinSubnetRegistrationEpochs = _item("MinSubnetRegistrationEpochs", u32, default=720)
SubnetEnactmentEpochs = _item("SubnetEnactmentEpochs", u32, default=2526)
MaxSubnetBootnodeAccess = _item("MaxSubnetBootnodeAccess", u32, default=21)
MaxSubnets = _item("MaxSubnets", u32, default=64)
MaxBootnodes = _item("MaxBootnodes", u32, default=32)
MinSubnetNodes = _item("MinSubnetNodes", u32, default=3)
MaxSubnetNodes = _item("MaxSubnetNodes", u32, default=256)
MaxMinDelegateStakeMultiplier = _item("MaxMinDelegateStakeMultiplier", u128, default=4 * ONE)
MinChurnLimit = _item("MinChurnLimit", u32, default=1)
MaxChurnLimit = _item("MaxChurnLimit", u32, default=64)
MinChurnLimitMultiplier = _item("MinChurnLimitMultiplier", u32, default=1)
MaxChurnLimitMultiplier = _item("MaxChurnLimitMultiplier", u32, default=5053)
MinQueueEpochs = _item("MinQueueEpochs", u32, default=3)
MaxQueueEpochs = _item("MaxQueueEpochs", u32, default=21_900)
MinIdleClassificationEpochs = _item("MinIdleClassificationEpochs", u32, default=1)
MaxIdleClassificationEpochs = _item("MaxIdleClassificationEpochs", u32, default=5053)
MinIncludedClassificationEpochs = _item("MinIncludedClassificationEpochs", u32, default=1)
MaxIncludedClassificationEpochs = _item("MaxIncludedClassificationEpochs", u32, default=5053)
MaxSubnetNodeMinWeightDecreaseReputationThreshold = _item(
    "MaxSubnetNodeMinWeightDecreaseReputationThreshold", u128, default=10**17
)
MinSubnetMinStake = _item("MinSubnetMinStake", u128, default=100 * ONE)
MaxSubnetMinStake = _item("MaxSubnetMinStake", u128, default=250 * ONE)
NetworkMaxStakeBalance = _item("NetworkMaxStakeBalance", u128, default=1000 * ONE)
MinDelegateStakePercentage = _item("MinDelegateStakePercentage", u128, default=5 * 10**16)
MaxDelegateStakePercentage = _item("MaxDelegateStakePercentage", u128, default=95 * 10**16)
MinMaxRegisteredNodes = _item("MinMaxRegisteredNodes", u32, default=1)
MaxMaxRegisteredNodes = _item("MaxMaxRegisteredNodes", u32, default=64)
MaxSubnetDelegateStakeRewardsPercentageChange = _item(
    "MaxSubnetDelegateStakeRewardsPercentageChange", u128, default=2 * 10**16
)
SubnetDelegateStakeRewardsUpdatePeriod = _item("SubnetDelegateStakeRewardsUpdatePeriod", u32, default=14_400)
DelegateStakeCooldownEpochs = _item("DelegateStakeCooldownEpochs", u32, default=1)
NodeDelegateStakeCooldownEpochs = _item("NodeDelegateStakeCooldownEpochs", u32, default=1)
StakeCooldownEpochs = _item("StakeCooldownEpochs", u32, default=4)
MaxUnbondings = _item("MaxUnbondings", u32, default=32)
BaseValidatorReward = _item("BaseValidatorReward", u128, default=ONE)
ValidatorRewardK = _item("ValidatorRewardK", u64, default=20)
ValidatorRewardMidpoint = _item("ValidatorRewardMidpoint", u128, default=5 * 10**17)
AttestorRewardExponent = _item("AttestorRewardExponent", u64, default=10)
AttestorMinRewardFactor = _item("AttestorMinRewardFactor", u128, default=33 * 10**16)
BaseSlashPercentage = _item("BaseSlashPercentage", u128, default=3125 * 10**13)
MaxSlashAmount = _item("MaxSlashAmount", u128, default=ONE)
SubnetDistributionPower = _item("SubnetDistributionPower", u128, default=75 * 10**16)
DelegateStakeWeightFactor = _item("DelegateStakeWeightFactor", u128, default=4 * 10**17)
SubnetWeightFactors = _item(
    "SubnetWeightFactors",
    t.weight_factors,
    default={"delegate_stake": 4 * 10**17, "node_count": 4 * 10**17, "net_flow": 2 * 10**17},
)
InflationSigmoidMidpoint = _item("InflationSigmoidMidpoint", u128, default=5 * 10**17)
InflationSigmoidSteepness = _item("InflationSigmoidSteepness", u128, default=7)
SubnetOwnerPercentage = _item("SubnetOwnerPercentage", u128, default=23 * 10**16)
PendingSubnetOwner = _item("PendingSubnetOwner", account_id, _SUBNET, optional=True)
SubnetBootnodes = _item("SubnetBootnodes", btree_map(opaque_peer_id, bounded_bytes), _SUBNET)
SubnetBootnodeAccess = _item("SubnetBootnodeAccess", btree_set(account_id), _SUBNET)
SubnetName = _item("SubnetName", u32, _BYTES, optional=True)
SubnetRepo = _item("SubnetRepo", u32, _BYTES, optional=True)
ChurnLimit = _item("ChurnLimit", u32, _SUBNET, default=4)
ChurnLimitMultiplier = _item("ChurnLimitMultiplier", u32, _SUBNET, default=1)
SubnetNodeQueueEpochs = _item("SubnetNodeQueueEpochs", u32, _SUBNET, default=3)
IdleClassificationEpochs = _item("IdleClassificationEpochs", u32, _SUBNET, default=2)
IncludedClassificationEpochs = _item("IncludedClassificationEpochs", u32, _SUBNET, default=2)
SubnetNodeIdleConsecutiveEpochs = _item("SubnetNodeIdleConsecutiveEpochs", u32, _PAIR)
SubnetNodeConsecutiveIncludedEpochs = _item("SubnetNodeConsecutiveIncludedEpochs", u32, _PAIR)
QueueImmunityEpochs = _item("QueueImmunityEpochs", u32, _SUBNET, default=3)
SubnetRegistrationInitialColdkeys = _item(
    "SubnetRegistrationInitialColdkeys", btree_map(account_id, u32), _SUBNET, optional=True
)
SubnetMinStakeBalance = _item("SubnetMinStakeBalance", u128, _SUBNET, default=100 * ONE)
SubnetMaxStakeBalance = _item("SubnetMaxStakeBalance", u128, _SUBNET, default=1000 * ONE)
SubnetDelegateStakeRewardsPercentage = _item("SubnetDelegateStakeRewardsPercentage", u128, _SUBNET, default=10**17)
LastSubnetDelegateStakeRewardsUpdate = _item("LastSubnetDelegateStakeRewardsUpdate", u32, _SUBNET)
InitialColdkeyData = _item("InitialColdkeyData", btree_map(account_id, u32), _SUBNET, optional=True)
MaxRegisteredNodes = _item("MaxRegisteredNodes", u32, _SUBNET, default=64)
SubnetNodeMinWeightDecreaseReputationThreshold = _item("SubnetNodeMinWeightDecreaseReputationThreshold", u128, _SUBNET)
TotalSubnetNodeUids = _item("TotalSubnetNodeUids", u32, _SUBNET)
ColdkeyIdentity = _item("ColdkeyIdentity", t.identity, _ACCOUNT)
ColdkeyIdentityNameOwner = _item("ColdkeyIdentityNameOwner", account_id, _BYTES)
HotkeyOwner = _item("HotkeyOwner", account_id, _ACCOUNT)
HotkeySubnetId = _item("HotkeySubnetId", u32, _ACCOUNT, optional=True)
ColdkeyHotkeys = _item("ColdkeyHotkeys", btree_set(account_id), _ACCOUNT)
ColdkeySubnetNodes = _item("ColdkeySubnetNodes", btree_map(u32, btree_set(u32)), _ACCOUNT)
HotkeySubnetNodeId = _item("HotkeySubnetNodeId", u32, ((_ID, u32), (_BL, account_id)), optional=True)
SubnetNodeIdHotkey = _item("SubnetNodeIdHotkey", account_id, _PAIR, optional=True)
SubnetNodesData = _item("SubnetNodesData", t.subnet_node, _PAIR)
RegisteredSubnetNodesData = _item("RegisteredSubnetNodesData", t.subnet_node, _PAIR)
SubnetNodeQueue = _item("SubnetNodeQueue", vec(t.subnet_node), _SUBNET)
PeerIdSubnetNodeId = _item("PeerIdSubnetNodeId", u32, _PEER)
BootnodePeerIdSubnetNodeId = _item("BootnodePeerIdSubnetNodeId", u32, _PEER)
ClientPeerIdSubnetNodeId = _item("ClientPeerIdSubnetNodeId", u32, _PEER)
MultiaddrSubnetNodeId = _item("MultiaddrSubnetNodeId", u32, ((_ID, u32), (_BL, bounded_bytes)))
UniqueParamSubnetNodeId = _item("UniqueParamSubnetNodeId", u32, ((_ID, u32), (_BL, bounded_bytes)))
CurrentNodeBurnRate = _item("CurrentNodeBurnRate", u128, _SUBNET, default=ONE)
BaseNodeBurnAmount = _item("BaseNodeBurnAmount", u128, default=10**13)
MinNodeBurnRate = _item("MinNodeBurnRate", u128, default=ONE)
MaxNodeBurnRate = _item("MaxNodeBurnRate", u128, default=5 * ONE)
NodeBurnRateAlpha = _item("NodeBurnRateAlpha", u128, _SUBNET, default=5 * 10**17)
TargetNodeRegistrationsPerEpoch = _item("TargetNodeRegistrationsPerEpoch", u32, _SUBNET, default=64)
NodeRegistrationsThisEpoch = _item("NodeRegistrationsThisEpoch", u32, _SUBNET)
TxRateLimit = _item("TxRateLimit", u32)
LastTxBlock = _item("LastTxBlock", u32, ((_ID, account_id),))
TxPause = _item("TxPause", boolean)
SubnetElectedValidator = _item("SubnetElectedValidator", u32, _PAIR, optional=True)
SubnetConsensusSubmission = _item("SubnetConsensusSubmission", t.consensus_data, _PAIR, optional=True)
MinAttestationPercentage = _item("MinAttestationPercentage", u128, default=66 * 10**16)
SuperMajorityAttestationRatio = _item("SuperMajorityAttestationRatio", u128, default=875 * 10**15)
FinalSubnetEmissionWeights = _item("FinalSubnetEmissionWeights", t.distribution_data, _SUBNET)
MinNodeReputationFactor = _item("MinNodeReputationFactor", u128, default=5 * 10**16)
MaxNodeReputationFactor = _item("MaxNodeReputationFactor", u128, default=5 * 10**17)
MinMinSubnetNodeReputation = _item("MinMinSubnetNodeReputation", u128, default=5 * 10**16)
MaxMinSubnetNodeReputation = _item("MaxMinSubnetNodeReputation", u128, default=5 * 10**17)
MinSubnetNodeReputation = _item("MinSubnetNodeReputation", u128, _SUBNET, default=10**17)
SubnetNodeReputation = _item("SubnetNodeReputation", u128, _PAIR, default=ONE)
AbsentDecreaseReputationFactor = _item("AbsentDecreaseReputationFactor", u128, _SUBNET, default=10**17)
IncludedIncreaseReputationFactor = _item("IncludedIncreaseReputationFactor", u128, _SUBNET, default=10**17)
BelowMinWeightDecreaseReputationFactor = _item("BelowMinWeightDecreaseReputationFactor", u128, _SUBNET, default=10**17)
NonAttestorDecreaseReputationFactor = _item("NonAttestorDecreaseReputationFactor", u128, _SUBNET, default=10**17)
NonConsensusAttestorDecreaseReputationFactor = _item(
    "NonConsensusAttestorDecreaseReputationFactor", u128, _SUBNET, default=10**17
)
ValidatorAbsentDecreaseReputationFactor = _item(
    "ValidatorAbsentDecreaseReputationFactor", u128, _SUBNET, default=5 * 10**16
)
ValidatorNonConsensusSubnetNodeReputationFactor = _item(
    "ValidatorNonConsensusSubnetNodeReputationFactor", u128, _SUBNET, default=5 * 10**16
)
SubnetReputation = _item("SubnetReputation", u128, _SUBNET, default=ONE)
MinSubnetReputation = _item("MinSubnetReputation", u128, default=10**17)
NotInConsensusSubnetReputationFactor = _item("NotInConsensusSubnetReputationFactor", u128, default=125 * 10**15)
MaxPauseEpochsSubnetReputationFactor = _item("MaxPauseEpochsSubnetReputationFactor", u128, default=125 * 10**15)
LessThanMinNodesSubnetReputationFactor = _item("LessThanMinNodesSubnetReputationFactor", u128, default=125 * 10**15)
ValidatorAbsentSubnetReputationFactor = _item("ValidatorAbsentSubnetReputationFactor", u128, default=5 * 10**16)
InConsensusSubnetReputationFactor = _item("InConsensusSubnetReputationFactor", u128, default=125 * 10**15)
ColdkeyReputationIncreaseFactor = _item("ColdkeyReputationIncreaseFactor", u128, default=5 * 10**14)
ColdkeyReputationDecreaseFactor = _item("ColdkeyReputationDecreaseFactor", u128, default=5 * 10**17)
ColdkeyReputation = _item("ColdkeyReputation", t.reputation, _ACCOUNT, default=t.DEFAULT_REPUTATION)
TotalStake = _item("TotalStake", u128)
TotalSubnetStake = _item("TotalSubnetStake", u128, _SUBNET)
AccountSubnetStake = _item("AccountSubnetStake", u128, _ACCOUNT_SUBNET)
TotalAccountDelegateStake = _item("TotalAccountDelegateStake", u128)
AccountDelegateStake = _item("AccountDelegateStake", u128, _ACCOUNT)
StakeUnbondingLedger = _item("StakeUnbondingLedger", btree_map(u32, u128), _ACCOUNT)
TotalUnbondingBalance = _item("TotalUnbondingBalance", u128)
MinActiveNodeStakeEpochs = _item("MinActiveNodeStakeEpochs", u32, default=720)
MinSubnetDelegateStakeFactor = _item("MinSubnetDelegateStakeFactor", u128, default=10**15)
MinDelegateStakeDeposit = _item("MinDelegateStakeDeposit", u128, default=1000)
TotalDelegateStake = _item("TotalDelegateStake", u128)
TotalSubnetDelegateStakeShares = _item("TotalSubnetDelegateStakeShares", u128, _SUBNET)
TotalSubnetDelegateStakeBalance = _item("TotalSubnetDelegateStakeBalance", u128, _SUBNET)
AccountSubnetDelegateStakeShares = _item("AccountSubnetDelegateStakeShares", u128, _ACCOUNT_SUBNET)
NodeRewardRateUpdatePeriod = _item("NodeRewardRateUpdatePeriod", u32, default=14_400)
MaxRewardRateDecrease = _item("MaxRewardRateDecrease", u128, default=10_000_000)
TotalNodeDelegateStake = _item("TotalNodeDelegateStake", u128)
TotalNodeDelegateStakeShares = _item("TotalNodeDelegateStakeShares", u128, _PAIR)
TotalNodeDelegateStakeBalance = _item("TotalNodeDelegateStakeBalance", u128, _PAIR)
AccountNodeDelegateStakeShares = _item(
    "AccountNodeDelegateStakeShares", u128, ((_BL, account_id), (_ID, u32), (_ID, u32))
)
OverwatchNodeBlacklist = _item("OverwatchNodeBlacklist", boolean, _ACCOUNT)
MaxOverwatchNodes = _item("MaxOverwatchNodes", u32, default=64)
TotalOverwatchNodes = _item("TotalOverwatchNodes", u32)
TotalOverwatchNodeUids = _item("TotalOverwatchNodeUids", u32)
OverwatchEpochLengthMultiplier = _item("OverwatchEpochLengthMultiplier", u32, default=16)
OverwatchCommitCutoffPercent = _item("OverwatchCommitCutoffPercent", u128, default=8 * 10**17)
OverwatchNodes = _item("OverwatchNodes", t.overwatch_node, _SUBNET, optional=True)
OverwatchNodeIdHotkey = _item("OverwatchNodeIdHotkey", account_id, _SUBNET, optional=True)
HotkeyOverwatchNodeId = _item("HotkeyOverwatchNodeId", u32, _ACCOUNT, optional=True)
PeerIdOverwatchNodeId = _item("PeerIdOverwatchNodeId", u32, _PEER)
OverwatchNodeIndex = _item("OverwatchNodeIndex", btree_map(u32, opaque_peer_id), _SUBNET)
OverwatchCommits = _item("OverwatchCommits", h256, ((_ID, u32), (_ID, u32), (_ID, u32)), optional=True)
OverwatchReveals = _item("OverwatchReveals", u128, ((_ID, u32), (_ID, u32), (_ID, u32)), optional=True)
OverwatchWeightFactor = _item("OverwatchWeightFactor", u128, default=ONE)
OverwatchStakeWeightFactor = _item("OverwatchStakeWeightFactor", u128, default=9 * 10**17)
OverwatchSubnetWeights = _item("OverwatchSubnetWeights", u128, _PAIR, optional=True)
OverwatchNodeWeights = _item("OverwatchNodeWeights", u128, _PAIR, optional=True)
OverwatchMinDiversificationRatio = _item("OverwatchMinDiversificationRatio", u128, default=25 * 10**16)
OverwatchMinRepScore = _item("OverwatchMinRepScore", u128, default=75 * 10**16)
OverwatchMinAvgAttestationRatio = _item("OverwatchMinAvgAttestationRatio", u128, default=72 * 10**16)
OverwatchMinAge = _item("OverwatchMinAge", u32, default=5)
TotalOverwatchStake = _item("TotalOverwatchStake", u128)
AccountOverwatchStake = _item("AccountOverwatchStake", u128, _ACCOUNT)
OverwatchMinStakeBalance = _item("OverwatchMinStakeBalance", u128, default=100 * ONE)
SwapQueueOrder = _item("SwapQueueOrder", _bounded(vec(u32)))
SwapCallQueue = _item("SwapCallQueue", t.queued_swap_item, _SUBNET, optional=True)
NextSwapQueueId = _item("NextSwapQueueId", u32)
MaxSwapQueueCallsPerBlock = _item("MaxSwapQueueCallsPerBlock", u32, default=16)
MaximumHooksWeightV2 = _item(
    "MaximumHooksWeightV2", t.hooks_weight, default={"ref_time": 10**12, "proof_size": 2**63 - 1}
)

ITEMS: Final[tuple[StorageItem, ...]] = tuple(
    each for each in list(globals().values()) if isinstance(each, StorageItem)
)
"""All items, in the metadata's order."""

DEV_GENESIS: Final[dict[str, Any]] = {
    "MinSubnetRegistrationEpochs": 0,
    "MinSubnetDelegateStakeFactor": 0,
    "MaxMinDelegateStakeMultiplier": ONE,
    "StakeCooldownEpochs": 1,
    "DelegateStakeCooldownEpochs": 1,
    "NodeDelegateStakeCooldownEpochs": 1,
    "MinActiveNodeStakeEpochs": 1,
    "SubnetPauseCooldownEpochs": 0,
    "SubnetDelegateStakeRewardsUpdatePeriod": 0,
    "NodeRewardRateUpdatePeriod": 0,
    "OverwatchEpochLengthMultiplier": 1,
    "OverwatchMinDiversificationRatio": 0,
    "OverwatchMinRepScore": 0,
    "OverwatchMinAvgAttestationRatio": 0,
    "OverwatchMinAge": 0,
}
"""Plain items set at block 0 instead of their defaults, so that a subnet lives through its life in minutes.
The same values as in the network's development chain specification."""
