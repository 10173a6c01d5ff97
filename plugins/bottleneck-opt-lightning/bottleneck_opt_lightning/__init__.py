"""A Lightning callback that makes the network smaller and goes on training it."""

from bottleneck_opt_lightning.compress import Compress

__all__ = ["Compress"]
