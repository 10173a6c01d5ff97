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
from bottleneck_opt.exporting.capturing import Captured, describe_failure, quiet

_PLAIN = "Let the model take and return tensors in tuples, lists and dicts, and nothing else."


def to_pt2(captured: Captured) -> bytes:
    """The file's content.

    Raises:
        ExportError: A tensor could only be pickled, or the model takes or returns what torch cannot write.
    """
    _check_plain(captured.program)
    buffer = io.BytesIO()
    try:
        with quiet():
            torch.export.save(captured.program, buffer)
    except Exception as error:  # types of arguments that torch can capture and not write down
        raise ExportError(f".pt2: torch.export cannot write it: {describe_failure(error)}. {_PLAIN}") from error
    return buffer.getvalue()


def _check_plain(program: ExportedProgram) -> None:
    for name, value in {**program.state_dict, **program.constants}.items():
        if not isinstance(value, Tensor) or type(value.data) is not Tensor:
            raise ExportError(
                f"'{name}' is a {type(value).__name__}, which torch can only pickle into a .pt2 file; expected plain "
                "tensors. Turn it into one, or export to .onnx."
            )


def run_pt2(content: bytes) -> Callable[..., Any]:
    """What the file computes, read from these very bytes.

    Raises:
        ExportError: torch cannot read them.
    """
    try:
        with quiet():
            return torch.export.load(io.BytesIO(content)).module()
    except Exception as error:  # outputs that torch can write down and not read
        reason = describe_failure(error.__cause__ or error)
        raise ExportError(f".pt2: torch.export cannot read what it wrote: {reason}. {_PLAIN}") from error
