"""Publish and subscribe among the members of a subnet: libp2p's gossipsub v1.1 with strict rules for topics."""

from mesh.gossip.gossip import Gossip, GossipConfig, PublishReport, Subscription
from mesh.gossip.router import RouterConfig
from mesh.gossip.rules import Message, TopicRule

__all__ = ["Gossip", "GossipConfig", "Message", "PublishReport", "RouterConfig", "Subscription", "TopicRule"]
