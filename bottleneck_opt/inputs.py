"""Example inputs: read what the user gave, make up what was not given, move and vary it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bottleneck_opt.errors import InputError, ModelError
from bottleneck_opt.noise import make_noise

_SIZES_2D = (224, 32, 64, 128, 299)


@dataclass(frozen=True)
class Inputs:
    """One call's arguments.

    Example:
        >>> read_inputs(torch.zeros(1, 3, 8, 8)).describe()
        'Tensor 1x3x8x8 float32'
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def call(self, model: Callable[..., Any]) -> Any:
        """``model(*args, **kwargs)`` on copies of the tensors: a model may write into its arguments."""
        return self.copy().hand_over(model)

    def hand_over(self, model: Callable[..., Any]) -> Any:
        """``model(*args, **kwargs)`` on these very tensors. A generator is run to its end and gives a tuple."""
        output = model(*self.args, **self.kwargs)
        return tuple(output) if inspect.isgenerator(output) else output

    def copy(self) -> Inputs:
        """The same arguments with a copy of every tensor."""
        return self.map(torch.clone)

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same arguments with every tensor replaced by ``change(tensor)``, asked in the order of ``tensors()``."""
        args = tuple(map_tensors(value, change) for value in self.args)
        return Inputs(args, {name: map_tensors(value, change) for name, value in self.kwargs.items()})

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor in the arguments, in order."""
        return tuple(find_tensors((self.args, dict(self.kwargs))))

    def describe(self) -> str:
        """The tensors in words: ``Tensor 1x3x224x224 float32``."""
        shown = [f"Tensor {'x'.join(map(str, t.shape))} {str(t.dtype).removeprefix('torch.')}" for t in self.tensors()]
        return ", ".join(shown) or "no tensors"


def read_inputs(given: Any, *, values: bool = True) -> Inputs:
    """The user's ``inputs=``: a Tensor, a tuple of arguments or a dict of keyword arguments.

    Args:
        given: What the user gave.
        values: Whether its tensors must hold values; shapes are enough for a model that holds none itself.

    Raises:
        InputError: It is something else, or holds no tensor, no example or no values.
    """
    if isinstance(given, Inputs):
        return given
    inputs = _read_inputs(given)
    if not inputs.tensors():
        raise InputError(
            f"inputs: found no tensor in the {type(given).__name__} given; expected one example call of the model. "
            "Pass a Tensor, a tuple of arguments or a dict of keyword arguments."
        )
    if values:
        check_has_values(inputs, "inputs")
    if batch_size(inputs) == 0:
        raise InputError(
            f"inputs: got {inputs.describe()}, an empty batch; expected at least one example. "
            "Pass one example call of the model, for instance torch.randn(1, 3, 224, 224)."
        )
    return inputs


def is_without_values(model: nn.Module) -> bool:
    """Whether some of a model's parameters or buffers are on the meta device, where there are only shapes."""
    return any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def check_has_values(inputs: Inputs, where: str) -> None:
    """Raise InputError when a tensor is on the meta device."""
    if any(tensor.is_meta for tensor in inputs.tensors()):
        raise InputError(
            f"{where}: got {inputs.describe()} on the meta device, which holds no values; expected data. "
            "Pass a tensor with values, for instance torch.randn(1, 3, 224, 224)."
        )


def _read_inputs(given: Any) -> Inputs:
    if isinstance(given, Tensor):
        return Inputs((given,))
    if isinstance(given, tuple):
        return Inputs(given)
    if isinstance(given, Mapping):
        return Inputs((), dict(given))
    raise InputError(
        f"inputs: got {type(given).__name__}; expected a Tensor, a tuple of arguments or a dict of keyword arguments. "
        "Pass one example call of the model, for instance torch.randn(1, 3, 224, 224)."
    )


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested value (dict, list, tuple, dataclass) with every tensor replaced; other values are kept as they are."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: map_tensors(getattr(value, f.name), change) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    if isinstance(value, dict):
        return type(value)((key, map_tensors(item, change)) for key, item in value.items())
    return value


def find_tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor inside a nested value, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from find_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from find_tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for part in dataclasses.fields(value):
            yield from find_tensors(getattr(value, part.name))


def vary_inputs(inputs: Inputs, *, seed: int) -> Inputs:
    """Another input of the same kind: Gaussian noise of each float tensor's own scale, integers in another order."""
    generator = torch.Generator().manual_seed(seed)

    def vary(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.flip(-1) if tensor.dim() else tensor
        noise = make_noise(tensor.shape, generator).to(tensor)
        spread = tensor.detach().float().std() if tensor.numel() > 1 else tensor.new_zeros(())
        scale = spread if spread > 0 else torch.ones_like(spread)
        return noise * scale.to(tensor) + tensor.detach().float().mean().to(tensor)

    return inputs.map(vary)


def noise_batches(inputs: Inputs, *, examples: int, seed: int) -> list[Inputs]:
    """Noise calls like the example call, enough of them to hold ``examples`` examples."""
    size = max(1, batch_size(inputs))
    return [vary_inputs(inputs, seed=seed + 1 + index) for index in range(-(-examples // size))]


def stretch_batch(inputs: Inputs, size: int) -> Inputs:
    """The example call with its batch axis repeated to at least ``size`` examples."""
    now = max(1, batch_size(inputs))
    times = -(-size // now)

    def repeat(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != now:
            return tensor
        return tensor.repeat(times, *(1 for _ in tensor.shape[1:]))

    return inputs.map(repeat)


def batch_size(inputs: Inputs) -> int:
    """Length of axis 0 of the first tensor with an axis; 1 when there is none."""
    return next((tensor.shape[0] for tensor in inputs.tensors() if tensor.dim()), 1)


def infer_inputs(model: nn.Module, fault: Callable[[Inputs], str]) -> tuple[Inputs, str]:
    """An example input when the user gave none, and a sentence that says where it came from.

    The model's own hints come first (timm ``default_cfg``, Lightning ``example_input_array``, transformers ``config``),
    then the first convolution's channels at 224, 32, 64, 128 and 299 pixels, batch 1.

    Args:
        model: The model.
        fault: Says why the model does not run on an input; empty where it does.

    Raises:
        ModelError: Nothing fits.
    """
    example = getattr(model, "example_input_array", None)
    if isinstance(example, Tensor | tuple | Mapping):
        return read_inputs(example, values=not is_without_values(model)), "inputs: the model's own example_input_array"
    faults = []
    for inputs, source in _guesses(model):
        faults.append(fault(inputs))
        if not faults[-1]:
            return inputs, f"inputs: {inputs.describe()}, noise, from {source}"
    first = f" The first of them: {faults[0]}" if faults else " Pass inputs=, one example call of the model."
    raise ModelError(
        f"{type(model).__name__}: no input was given and none of the guesses ran (a first Conv2d fed with pixels of "
        f"size {', '.join(map(str, _SIZES_2D))}).{first}"
    )


def _guesses(model: nn.Module) -> Iterator[tuple[Inputs, str]]:
    hint = _size_hint(model)
    if hint is not None:
        yield _noise(model, hint[0]), hint[1]
    first = next((m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    if first is None:
        return
    axes, channels = len(first.kernel_size), first.in_channels or 3  # a lazy convolution does not know yet
    sizes = {1: (4096, *_SIZES_2D), 2: _SIZES_2D, 3: (32, 64)}[axes]
    for size in sizes:
        yield _noise(model, (channels, *([size] * axes))), f"the first convolution at size {size}"


def _size_hint(model: nn.Module) -> tuple[tuple[int, ...], str] | None:
    for name in ("pretrained_cfg", "default_cfg"):
        cfg = getattr(model, name, None)
        size = cfg.get("input_size") if isinstance(cfg, Mapping) else getattr(cfg, "input_size", None)
        if size:
            return tuple(size), f"the model's {name}"
    config = getattr(model, "config", None)
    pixels, channels = getattr(config, "image_size", None), getattr(config, "num_channels", None)
    if isinstance(pixels, int) and isinstance(channels, int):
        return (channels, pixels, pixels), "the model's config"
    return None


def _noise(model: nn.Module, shape: tuple[int, ...]) -> Inputs:
    parameter = next(model.parameters(), torch.zeros(1, device="cpu"))
    noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0), device="cpu")
    return Inputs((noise.to(parameter.device, parameter.dtype),))
