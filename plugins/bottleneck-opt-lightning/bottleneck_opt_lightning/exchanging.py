"""Put the layers of a rewritten copy into the module that is being trained, which stays the same object."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from bottleneck_opt.errors import ModelError


def find_target(module: LightningModule, path: str) -> nn.Module:
    """The part of a LightningModule that is made smaller: itself where the path is empty.

    Raises:
        ModelError: There is no such part.
    """
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        names = ", ".join(name for name, _ in module.named_children())
        raise ModelError(
            f"Compress: module='{path}' is no part of {type(module).__name__}; expected one of {names}. Leave it out "
            "to make the whole module smaller."
        ) from error


def exchange(module: LightningModule, path: str, rewritten: nn.Module) -> None:
    """Put a rewritten copy in the place of a part.

    Of the LightningModule itself only the children are exchanged: the trainer and the caller hold on to the object.
    """
    if path:
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, rewritten)
        return
    for name, child in list(rewritten.named_children()):
        setattr(module, name, child)


@contextmanager
def detached(module: LightningModule) -> Iterator[None]:
    """Inside, the module knows no trainer, so that copies of it do not copy the trainer and its data too."""
    trainer: Trainer | None = module._trainer
    module.trainer = None
    try:
        yield
    finally:
        module.trainer = trainer
