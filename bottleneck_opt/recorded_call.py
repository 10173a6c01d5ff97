"""The example call that a graph was recorded with, written down in a plan and made again from it."""

from __future__ import annotations

import torch
from torch import Tensor

from bottleneck_opt.errors import RewriteError
from bottleneck_opt.inputs import Inputs
from bottleneck_opt.noise import make_noise
from bottleneck_opt.plan import Argument, Plan


def describe_arguments(inputs: Inputs) -> tuple[Argument, ...]:
    """The call's tensors; none where an argument is something else, which a plan cannot hold.

    Example:
        >>> describe_arguments(Inputs((torch.zeros(1, 3, 8, 8),)))
        (Argument(name='', shape=(1, 3, 8, 8), dtype='float32'),)
    """
    named = [*(("", value) for value in inputs.args), *inputs.kwargs.items()]
    if not all(isinstance(value, Tensor) for _, value in named):
        return ()
    return tuple(Argument(name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in named)


def make_call(plan: Plan) -> Inputs:
    """A call like the one that the plan's graph was recorded with: noise, and zeros for what is not floating.

    Raises:
        RewriteError: The plan does not say what the call was, because it was more than tensors.
    """
    if not plan.arguments:
        raise RewriteError(
            "the plan rewrites a recorded graph and cannot say with which call it was recorded: it held more than "
            "tensors. Pass inputs=, the example call that optimize was given."
        )
    generator = torch.Generator().manual_seed(0)
    made = [(each.name, _make_tensor(each, generator)) for each in plan.arguments]
    return Inputs(tuple(value for name, value in made if not name), {name: value for name, value in made if name})


def _make_tensor(argument: Argument, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, argument.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise RewriteError(
            f"the plan's recorded call has a tensor of type '{argument.dtype}'; expected one of torch's, such as "
            "float32. Use the plan.json that result.save() wrote."
        )
    if dtype.is_floating_point:
        return make_noise(argument.shape, generator).to(dtype)
    return torch.zeros(argument.shape, dtype=dtype, device="cpu")
