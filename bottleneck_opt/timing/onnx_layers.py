"""Layers in a row as the bytes of an ONNX model, made directly: the exporter would take a second for each."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bottleneck_opt.kernels import to_module
from bottleneck_opt.layers import LINEAR, LayerSpec

OPSET = 17
_IR_VERSION = 8


def to_onnx_chain(layers: Sequence[LayerSpec], shape: Sequence[int]) -> bytes:
    """An ONNX model of stock layers with weights of no meaning, float32.

    Padding other than with zeros, a separate operation, is left out.

    Args:
        layers: First to last.
        shape: Shape of the input.
    """
    onnx = importlib.import_module("onnx")
    nodes, values, source = [], [], "x0"
    generator = np.random.default_rng(0)
    for number, spec in enumerate(layers):
        weight = generator.normal(0, 0.05, _weight_shape(spec)).astype(np.float32)
        names = [source, f"w{number}"]
        values.append(onnx.numpy_helper.from_array(weight, names[1]))
        if spec.bias and spec.kind != LINEAR:
            names.append(f"b{number}")
            values.append(onnx.numpy_helper.from_array(np.zeros(spec.out_channels, np.float32), names[2]))
        source = f"x{number + 1}"
        nodes.append(onnx.helper.make_node(_operator(spec), names, [source], **_attributes(spec)))
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "layers", [onnx.helper.make_tensor_value_info("x0", kind, list(shape))],
        [onnx.helper.make_tensor_value_info(source, kind, None)], values,
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


def _operator(spec: LayerSpec) -> str:
    if spec.is_activation:
        return "PRelu"
    return "MatMul" if spec.kind == LINEAR else "ConvTranspose" if spec.transposed else "Conv"


def _weight_shape(spec: LayerSpec) -> tuple[int, ...]:
    if spec.is_activation:
        return (1,) if spec.groups == 1 else (spec.groups, 1, 1)
    if spec.kind == LINEAR:
        return spec.in_channels, spec.out_channels
    return tuple(to_module(spec, torch.empty(spec.weight_shape, device="meta")).shape)


def _attributes(spec: LayerSpec) -> dict[str, Any]:
    if spec.is_activation or spec.kind == LINEAR:
        return {}
    before, after = zip(*spec.padding_amounts(), strict=True)
    found = {
        "kernel_shape": list(spec.kernel), "strides": list(spec.stride), "dilations": list(spec.dilation),
        "group": spec.groups, "pads": [*before, *after],
    }  # fmt: skip
    if spec.transposed:
        found["output_padding"] = list(spec.output_padding)
    return found
