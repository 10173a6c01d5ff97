"""CP decomposition of convolutions, for bottleneck-opt."""

from bottleneck_opt_cp.cp import Cp

__all__ = ["Cp"]
