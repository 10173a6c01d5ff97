"""Write a model as one file that other programs run: ONNX, or torch's own exported program."""

from bottleneck_opt.exporting.opening import OnnxModel, open_onnx
from bottleneck_opt.exporting.record import Exported, Quantized
from bottleneck_opt.exporting.writing import export

__all__ = ["Exported", "OnnxModel", "Quantized", "export", "open_onnx"]
