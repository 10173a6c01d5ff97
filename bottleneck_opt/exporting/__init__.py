"""Write a model as one file that other programs run: ONNX, or torch's own exported program."""

from bottleneck_opt.exporting.record import Exported
from bottleneck_opt.exporting.writing import export

__all__ = ["Exported", "export"]
