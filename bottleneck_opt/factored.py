"""The module that stands where one layer stood that was split into several."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bottleneck_opt.errors import RewriteError
from bottleneck_opt.kernels import gather_groups, merge_kernels, to_module, to_plain
from bottleneck_opt.layers import LayerSpec, describe_layer, shape_attributes


class Factored(nn.Sequential):
    """Layers in a row that stand where one convolution or Linear stood.

    Code that asked the old layer for its stride or its weight finds them here too: everything the old layer would
    have answered about its shape is answered, and ``weight`` is the kernel that the factors multiply out to. What the
    old layer was called with beside its input goes to the factor that carries its kernel. Where an activation stands
    between the factors there is no such kernel: ``weight`` has a shape then, but its values cannot be read.

    Example:
        >>> spec = LayerSpec("conv", "Linear", 4, 6)
        >>> parts = [spec.pointwise("conv", 4, 2, bias=False), spec.pointwise("expand", 2, 6, bias=True)]
        >>> layer = Factored(spec, OrderedDict((p.name, nn.Linear(p.in_channels, p.out_channels)) for p in parts))
        >>> tuple(layer.weight.shape), layer.out_features
        ((6, 4), 6)
    """

    def __init__(self, replaced: LayerSpec, layers: OrderedDict[str, nn.Module], *, core: int = 0) -> None:
        """Take over from a layer.

        Args:
            replaced: The layer that stood here.
            layers: The layers in its place.
            core: Index of the one that carries its kernel.
        """
        super().__init__(layers)
        self._replaced = replaced
        self._core = core
        for name, value in shape_attributes(replaced).items():
            setattr(self, name, value)

    def forward(self, input: Any, *more: Any, **options: Any) -> Any:  # noqa: A002  (as torch's layers name it)
        """The layers one after the other; further arguments go to the one that carries the kernel."""
        flowing = input
        for index, layer in enumerate(self.children()):
            flowing = layer(flowing, *more, **options) if index == self._core else layer(flowing)
        return flowing

    @property
    def weight(self) -> Tensor:
        """The merged weight in the old layer's own shape; it is multiplied out only when its values are used."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return self.merge()
        return MergedWeight(self)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last factor."""
        return self[-1].bias  # type: ignore[return-value]  # torch types every attribute as Tensor | Module

    def merge(self) -> Tensor:
        """The weight that the factors multiply out to, in the old layer's own shape. Gradients reach the factors.

        Raises:
            RewriteError: An activation stands between them.
        """
        layers = list(self.children())
        specs = [describe_layer(layer) for layer in layers]
        if None in specs:
            names = " -> ".join(name for name, _ in self.named_children())
            raise RewriteError(
                f"a {self._replaced.label} was replaced by {names}: an activation stands between the factors, so no "
                "weight computes the same. Read the factors' weights, or exclude this layer from such replacements."
            )
        kernels = [to_plain(spec, layer.weight) for spec, layer in zip(specs, layers, strict=True)]  # type: ignore[arg-type]
        merged, groups = merge_kernels(specs, kernels), self._replaced.groups  # type: ignore[arg-type]
        wide = merged.shape[1] * groups > self._replaced.in_channels
        return to_module(self._replaced, gather_groups(merged, groups) if wide else merged)

    def extra_repr(self) -> str:
        """What it stands for, shown when the model is printed."""
        return f"in place of {self._replaced.label}, {self._replaced.in_channels} -> {self._replaced.out_channels}"


_ANSWERED_BY_SHAPE = {
    *(getattr(Tensor, name).__get__ for name in ("dtype", "shape", "device", "ndim", "requires_grad", "layout")),
    *(getattr(Tensor, name).__get__ for name in ("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized")),
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex, Tensor.element_size,
    torch.is_floating_point, torch.is_complex, torch.numel,
}  # fmt: skip


class MergedWeight(Tensor):
    """The weight of a :class:`Factored`: knows its shape and dtype, and multiplies out when a function asks for more.

    Many models read ``layer.weight.dtype`` in every call; merging the factors for that would cost more than the layer.
    """

    _factored: Factored

    @staticmethod
    def __new__(cls, factored: Factored) -> MergedWeight:
        """A stand-in of the old weight's shape, without values."""
        spec, like = factored._replaced, next(factored.parameters())
        out, inner, *kernel = spec.weight_shape
        shape = (spec.in_channels, out // spec.groups, *kernel) if spec.transposed else (out, inner, *kernel)
        made: MergedWeight = Tensor._make_wrapper_subclass(
            cls, shape, dtype=like.dtype, device=like.device, requires_grad=like.requires_grad
        )
        made._factored = factored
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer questions about the shape at once; for everything else take the merged weight's place."""
        if func in _ANSWERED_BY_SHAPE:
            return super().__torch_function__(func, types, args, dict(kwargs or {}))  # type: ignore[no-untyped-call]
        merged, options = pytree.tree_map_only(MergedWeight, lambda lazy: lazy._factored.merge(), (args, kwargs or {}))
        return func(*merged, **options)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch annotates its own, disabled one
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The same below autograd, for callers that pass by ``__torch_function__``."""
        merged, options = pytree.tree_map_only(MergedWeight, lambda lazy: lazy._factored.merge(), (args, kwargs or {}))
        return func(*merged, **options)
