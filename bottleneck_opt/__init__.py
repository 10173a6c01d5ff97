"""Make a trained PyTorch network smaller, and see what changed."""

from bottleneck_opt.budget import Budget
from bottleneck_opt.calibrating import calibrate
from bottleneck_opt.errors import (
    BottleneckOptError,
    BudgetError,
    ExportError,
    FileError,
    InputError,
    ModelError,
    NotAvailableError,
    PassError,
    PatternError,
    RanksError,
    RewriteError,
)
from bottleneck_opt.exporting import Exported, OnnxModel, Quantized, export, open_onnx
from bottleneck_opt.graph import Cost, Traced
from bottleneck_opt.graph_view import to_graph_module
from bottleneck_opt.optimizer import optimize
from bottleneck_opt.plan import Plan
from bottleneck_opt.profiling import draw, profile
from bottleneck_opt.recipe import Recipe
from bottleneck_opt.recovery import Recovery, recover
from bottleneck_opt.result import Result
from bottleneck_opt.saving import load
from bottleneck_opt.statistics import Statistics
from bottleneck_opt.timing import Timing
from bottleneck_opt.tracing import trace
from bottleneck_opt.transferring import apply
from bottleneck_opt.version import __version__

__all__ = [
    "BottleneckOptError", "Budget", "BudgetError", "Cost", "ExportError", "Exported", "FileError", "InputError",
    "ModelError", "NotAvailableError", "OnnxModel", "PassError", "PatternError", "Plan", "Quantized", "RanksError",
    "Recipe", "Recovery", "Result", "RewriteError", "Statistics", "Timing", "Traced", "__version__", "apply",
    "calibrate", "draw", "export", "load", "open_onnx", "optimize", "profile", "recover", "to_graph_module", "trace",
]  # fmt: skip
