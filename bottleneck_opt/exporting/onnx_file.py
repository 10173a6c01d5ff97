"""A captured program as the bytes of an ``.onnx`` file, and what ONNX Runtime makes of them."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from bottleneck_opt.errors import ExportError
from bottleneck_opt.exporting.capturing import Captured, quiet
from bottleneck_opt.inputs import find_tensors
from bottleneck_opt.sources import one_line

MOST_BYTES = 2 * 10**9  # an ONNX file is one protobuf message, which can hold 2 GiB
_OPERATION = re.compile(r"op='([\w.:]+)'|\b(aten[.:]+\w+)")
_PRECISIONS = (
    "It has few operations in float64 and none in bfloat16: export model.float(), or leave the check out with "
    "check=False."
)
_INSTALL = "Install them: pip install 'bottleneck-opt[export]'"


def check_packages(*, run: bool) -> None:
    """Raise ExportError when a package is missing.

    Args:
        run: Whether ONNX Runtime is needed too.
    """
    needed = ["onnx", "onnxscript", *(["onnxruntime"] if run else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        without = ", or leave the check out with check=False" if missing == ["onnxruntime"] else ""
        raise ExportError(f".onnx needs {' and '.join(missing)}, not installed here. {_INSTALL}{without}.")


def to_onnx(captured: Captured, opset: int | None) -> tuple[bytes, int]:
    """The file's content and the version of its operators.

    Raises:
        ExportError: An operation has no ONNX counterpart, or the model is too large.
    """
    size = sum(each.numel() * each.element_size() for each in captured.program.state_dict.values())
    if size > MOST_BYTES:
        raise ExportError(f".onnx: the weights are {size / 1e9:.1f} GB; one file holds 2 GB at most. Export to .pt2.")
    outputs = sum(spec.kind.name == "USER_OUTPUT" for spec in captured.program.graph_signature.output_specs)
    names = ["output"] if outputs == 1 else [f"output_{number}" for number in range(outputs)]
    try:
        with quiet():
            made = torch.onnx.export(
                captured.program, (), dynamo=True, verbose=False, opset_version=opset, output_names=names,
                dynamic_shapes=captured.shapes,
            )  # fmt: skip
    except Exception as error:  # the exporter raises its own kinds, and passes on those of what it calls
        raise ExportError(_explain(error, captured.program, opset)) from error
    assert made is not None  # a program comes back where no file is named
    return made.model_proto.SerializeToString(), int(made.model.opset_imports[""])


def _explain(error: Exception, program: ExportedProgram, opset: int | None) -> str:
    texts = [str(each) for each in _chain(error)]
    found = next((match for text in reversed(texts) if (match := _OPERATION.search(text))), None)
    if found is None:
        said = one_line(texts[-1], width=200).rstrip(" .")
        return (
            f".onnx: torch.onnx cannot translate the model: {type(error).__name__}: {said}. "
            "Let it take and return tensors only, try another opset=, or export to .pt2."
        )
    name = (found[1] or found[2]).replace("::", ".")
    version = "" if opset is None else f" at opset {opset}"
    return (
        f".onnx: the operation {name}{_find_source(program, name)} has no ONNX counterpart{version}. Compute it "
        "in another way or outside the model, try a higher opset=, or export to .pt2, which holds all of torch."
    )


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        error = error.__cause__ or error
    return chain


def _find_source(program: ExportedProgram, name: str) -> str:
    """Where the model's code asked for an operation, in words; empty where that is not recorded."""
    wanted = name.removesuffix(".default")
    for node in program.graph.nodes:
        if str(node.target).removesuffix(".default") == wanted:
            lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").strip().splitlines()]
            return f" ({lines[-1]})" if lines else ""
    return ""


class Session:
    """ONNX Runtime with one file, on the CPU."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._names = [each.name for each in runtime.get_inputs()]

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The file's outputs, in order, for the tensors in a call of the model."""
        return [torch.from_numpy(each) for each in self._runtime.run(None, bind(self._names, args, kwargs))]

    def describe(self) -> str:
        """What it takes in words, such as ``x: batch x 3 x 8 x 8 tensor(float)``."""
        return "; ".join(
            f"{each.name}: {' x '.join(map(str, each.shape)) or 'a number'} {each.type}"
            for each in self._runtime.get_inputs()
        )


def bind(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a call by the names of a file's inputs: those given by name, then the others in order."""
    named = {name: value for name, value in kwargs.items() if name in names and isinstance(value, Tensor)}
    others = {name: value for name, value in kwargs.items() if name not in named}
    free = [name for name in names if name not in named]
    given = {**named, **dict(zip(free, find_tensors((args, others)), strict=True))}
    return {name: tensor.detach().cpu().numpy() for name, tensor in given.items()}


def start_session(content: bytes, *, name: str = "what was made", advice: str = _PRECISIONS) -> Session:
    """What ONNX Runtime computes, on the CPU, from these very bytes.

    Args:
        content: The file.
        name: What an error calls it.
        advice: What an error ends with.

    Raises:
        ExportError: It cannot run the file.
    """
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return Session(runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"]))
    except Exception as error:  # its exceptions share no base class of their own
        said = one_line(error, width=250).rstrip(" .")
        raise ExportError(f".onnx: ONNX Runtime cannot run {name}: {said}. {advice}") from error


def version_of_runtime() -> str:
    """ONNX Runtime with its version."""
    return f"ONNX Runtime {importlib.import_module('onnxruntime').__version__}"
