"""For whoever writes a pass: check it in one line, or rewrite a model at full rank, where nothing may be lost."""

from bottleneck_opt.testing.conformance import Conformance, check_pass
from bottleneck_opt.testing.faults import ConformanceError
from bottleneck_opt.testing.full_rank import FullRankRewrite, full_rank_plan, rewrite_at_full_rank, rewrite_everything

__all__ = [
    "Conformance",
    "ConformanceError",
    "FullRankRewrite",
    "check_pass",
    "full_rank_plan",
    "rewrite_at_full_rank",
    "rewrite_everything",
]
