"""A private copy of the user's model to run, record and calibrate on."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from bottleneck_opt.errors import InputError, ModelError
from bottleneck_opt.inputs import Inputs, find_tensors, is_without_values
from bottleneck_opt.recording import observe_calls

_HALF = (torch.float16, torch.bfloat16)


def unwrap_model(model: object) -> nn.Module:
    """The module inside ``torch.compile`` and DataParallel wrappers; the module itself when there is none.

    Raises:
        ModelError: It is not a Python module.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model: got {type(model).__name__}; expected a torch.nn.Module. Pass the model object itself, "
            "not its class, its state dict or a path."
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrap_model(model.module)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"model: got {type(model).__name__}, a compiled TorchScript model, which cannot be recorded or rewritten; "
            "expected a torch.nn.Module. Pass the Python module it was made from."
        )
    inner = getattr(model, "_orig_mod", None)
    return unwrap_model(inner) if isinstance(inner, nn.Module) else model


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy. Tensors with a history and lazy buffers, which deepcopy refuses, are copied in another way.

    Raises:
        ModelError: Something in it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        memo.update({id(value): value.detach().clone() for value in find_tensors(vars(module)) if not value.is_leaf})
        lazy = [buffer for buffer in module._buffers.values() if isinstance(buffer, UninitializedBuffer)]
        memo.update({id(buffer): _copy_lazy_buffer(buffer) for buffer in lazy})
    with torch.no_grad():  # script modules copy their parameters by a differentiable operation
        copied = _deepcopy(model, memo)
    for mine, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        if mine.requires_grad != theirs.requires_grad:  # lazy parameters, which refuse to be set, keep it by themselves
            mine.requires_grad_(theirs.requires_grad)
    return copied


def _copy_lazy_buffer(buffer: Tensor) -> Tensor:
    kind: Any = UninitializedBuffer  # torch does not annotate its arguments
    made: Tensor = kind(device=buffer.device, dtype=buffer.dtype)
    return made


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # any attribute of the user's model may refuse, in its own way
        raise ModelError(
            f"model: {type(model).__name__} cannot be copied: {type(error).__name__}: {_first_line(error)}. "
            "All work is done on copies: take the attribute out that cannot be copied, or give its class __deepcopy__."
        ) from error


def copy_to_device(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    """A working copy on a device; None leaves it on the model's own.

    Raises:
        ModelError: As for :func:`working_copy`.
        InputError: There is no such device here.
    """
    if device is None:
        return working_copy(model)
    _check_device(device)
    return working_copy(model).to(torch.device(device))


def _check_device(device: str | torch.device) -> None:
    try:
        torch.zeros(1, device=torch.device(device)).cpu()
    except Exception as error:  # each kind of device is missing in its own way
        raise InputError(
            f"device: got {str(device)!r}, which cannot be used here: {type(error).__name__}: {_first_line(error)}. "
            "Pass for instance 'cpu' or, where torch.cuda.is_available(), 'cuda'."
        ) from error


def working_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode; half precision becomes float32, float32 and float64 stay.

    Raises:
        ModelError: A weight is NaN or infinite or has no value, or the model cannot be copied.
    """
    check_finite_weights(model)
    return _settle(copy_model(model))


def _settle(made: nn.Module) -> nn.Module:
    made.eval()
    for module in made.modules():
        if isinstance(module, nn.DataParallel):
            module.device_ids = []  # run the module inside itself, not copies of it on other devices
    if any(tensor.dtype in _HALF for tensor in [*made.parameters(), *made.buffers()]):
        made = made.float()
    return made.requires_grad_(False)


def copy_for_tracing(model: nn.Module) -> nn.Module:
    """A working copy; all on the meta device when some of the model is, where there are only shapes.

    Raises:
        ModelError: A weight is NaN or infinite, or the model cannot be copied.
    """
    if not is_without_values(model):
        return working_copy(model)
    memo: dict[int, Any] = {
        id(value): _drop_values(value) for module in model.modules() for value in find_tensors(vars(module))
    }
    return _settle(_deepcopy(model, memo))


def _drop_values(tensor: Tensor) -> Tensor:
    shape = torch.empty_like(tensor, device="meta")
    return nn.Parameter(shape, requires_grad=False) if isinstance(tensor, nn.Parameter) else shape


def materialise(model: nn.Module, inputs: Inputs) -> nn.Module:
    """The model with every lazy layer built: a copy that has run once, or the model itself when it has none.

    Layers get their first values from a seed of their own; each module stays in the mode, train or eval, it was in.
    A layer that this input does not reach stays lazy.

    Raises:
        ModelError: The model cannot be copied.
        InputError: The model fails on the input.
    """
    if not is_lazy(model):
        return model
    made = copy_model(model)
    modes = {module: module.training for module in made.modules()}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        run_on_example(made.eval(), working_inputs(inputs, made, model_device(made)))
    for module, mode in modes.items():
        module.training = mode
    return made


def is_lazy(model: nn.Module) -> bool:
    """Whether some parameters or buffers have no shape before the first call."""
    return any(is_lazy_tensor(tensor) for tensor in [*model.parameters(), *model.buffers()])


def is_lazy_tensor(tensor: Tensor) -> bool:
    """Whether this parameter or buffer has no shape before the first call."""
    return isinstance(tensor, UninitializedParameter | UninitializedBuffer)


def check_finite_weights(model: nn.Module) -> None:
    """Raise ModelError when a parameter or buffer holds NaN or Inf, or nothing at all."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy_tensor(tensor):
            raise ModelError(
                f"{name}: this lazy parameter has no shape yet. Call the model once on real data before optimising it."
            )
        if tensor.is_meta:
            raise ModelError(
                f"{name}: is on the meta device, which holds no weights; expected a model with weights. "
                "Use model.to_empty(device='cpu') and load a checkpoint; trace, profile and draw work without weights."
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(
                f"{name}: {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values are NaN or infinite; "
                "expected finite weights. Load a sound checkpoint."
            )


def working_inputs(inputs: Inputs, model: nn.Module, device: torch.device) -> Inputs:
    """The inputs on the device, in the precision the working copy runs in."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)

    def place(tensor: Tensor) -> Tensor:
        moved = tensor.detach().to(device)
        return moved.to(dtype) if moved.is_floating_point() else moved.clone()

    return inputs.map(place)


def model_device(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU when there is none."""
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave all global state as it was, whatever happens inside: random numbers, TF32, autocast, recursion depth."""
    autocast = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    switches = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    devices, depth = list(range(torch.cuda.device_count())), sys.getrecursionlimit()
    try:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, False
        for device in autocast:
            torch.set_autocast_enabled(device, False)  # the caller's; the model may still switch it on itself
        sys.setrecursionlimit(4 * depth)  # copying and observing a nested model takes more frames than running it
        with torch.random.fork_rng(devices), _uncompiled():
            yield
    finally:
        sys.setrecursionlimit(depth)
        for device, enabled in autocast.items():
            torch.set_autocast_enabled(device, enabled)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = switches


def _uncompiled() -> AbstractContextManager[object]:
    """Run what torch.compile compiled as the Python it was made from, where every call can be seen."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes a second
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def at_home(model: nn.Module) -> AbstractContextManager[object]:
    """Make new tensors on the meta device while a model without values runs: it cannot mix them with others."""
    return torch.device("meta") if is_without_values(model) else nullcontext()


def run_on_example(model: nn.Module, inputs: Inputs, *, what: str = "inputs") -> object:
    """Run the model once.

    Args:
        model: A copy that may be run.
        inputs: The call.
        what: What the inputs are, for the message; its first word is the option to change.

    Raises:
        InputError: The model fails; the message holds the model's own error and the module in which it happened.
    """
    paths = {id(module): path for path, module in reversed(list(model.named_modules()))}
    failed: list[str] = []

    def observe(original, module, args, kwargs):  # type: ignore[no-untyped-def]  # the signature of observe_calls
        try:
            return original(module, *args, **kwargs)
        except Exception:
            where = paths.get(id(module), "") or "the model itself"
            failed.append(f"{where} ({type(module).__name__})")
            raise

    try:
        with observe_calls(observe), at_home(model):
            return inputs.call(model)
    except Exception as error:  # whatever the user's model raises is reported with its place
        where = f"in {failed[0]}: " if failed else ""
        raise InputError(
            f"{what}: the model fails on {inputs.describe()}: {where}{type(error).__name__}: {_first_line(error)}. "
            f"{_advice(model, what.split(maxsplit=1)[0])}"
        ) from error


def _advice(model: nn.Module, option: str) -> str:
    advice = f"Pass {option}= that the model runs on by itself"
    if not is_without_values(model):
        return f"{advice}."
    return (
        f"{advice}. A model on the meta device can neither look at the values of tensors (.item(), masks, nonzero) nor "
        "use tensors of another device: if it must, give it values by model.to_empty(device='cpu')."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".!") if lines else "no message"
