"""A captured program as the bytes of a ``.pt2`` file, and back.

Weights are stored as plain bytes and the program as JSON. torch pickles the example call and tensors of special
classes, and unpickles them when it reads the file: the example is left out here, and such tensors are refused.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from bottleneck_opt.errors import ExportError
from bottleneck_opt.exporting.capturing import Captured, quiet


def to_pt2(captured: Captured) -> bytes:
    """The file's content.

    Raises:
        ExportError: A tensor could only be pickled.
    """
    _check_plain(captured.program)
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(captured.program, buffer)
    return buffer.getvalue()


def _check_plain(program: ExportedProgram) -> None:
    for name, value in {**program.state_dict, **program.constants}.items():
        if not isinstance(value, Tensor) or type(value.data) is not Tensor:
            raise ExportError(
                f"'{name}' is a {type(value).__name__}, which torch can only pickle into a .pt2 file; expected plain "
                "tensors. Turn it into one, or export to .onnx."
            )


def run_pt2(content: bytes) -> Callable[..., Any]:
    """What the file computes, read from these very bytes."""
    with quiet():
        return torch.export.load(io.BytesIO(content)).module()
