"""A model served by many: batched, on the device there is, and proven in every epoch to be the same model."""

from subnets.inference.node import InferenceSubnet

subnet = InferenceSubnet()
