"""How long models and layers take: in which circumstances, measured, predicted, and remembered on disk."""

from bottleneck_opt.timing.setting import Timing, read_timings

__all__ = ["Timing", "read_timings"]
