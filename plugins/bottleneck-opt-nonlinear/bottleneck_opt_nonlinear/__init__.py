"""Bottlenecks with an activation in their middle, for bottleneck-opt."""

from bottleneck_opt_nonlinear.network_in_network import NetworkInNetwork

__all__ = ["NetworkInNetwork"]
