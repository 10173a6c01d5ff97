"""The callback."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from bottleneck_opt_lightning.exchanging import detached, exchange, find_target
from bottleneck_opt_lightning.optimizers import rebuild, remember
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

import bottleneck_opt as bo
from bottleneck_opt.errors import InputError, NotAvailableError
from bottleneck_opt.plan import Plan
from bottleneck_opt.rewriting import rewrite_structure


class Compress(Callback):
    """Makes the network smaller once, before an epoch or after the last one, and lets training go on.

    Optimizers and schedulers are made anew for the new parameters by your ``configure_optimizers`` and go on where they
    were. Checkpoints hold the plan, so that ``trainer.fit(ckpt_path=...)`` with the same callback builds the smaller
    network before it loads the weights.

    Attributes:
        result: What ``bottleneck_opt.optimize`` returned, once it ran: its plan, pictures and report.
        plan: The plan, also where training was resumed after it was made; None before.

    Example::

        trainer = Trainer(max_epochs=30, callbacks=[Compress(0.5, at_epoch=20)])
        trainer.fit(module, loader)
    """

    def __init__(
        self, budget: float | str | bo.Budget = 0.5, *, at_epoch: int | None = 0, module: str = "", examples: int = 64,
        **options: Any,
    ) -> None:  # fmt: skip
        """Say when, and how small.

        Args:
            budget: As for ``bottleneck_opt.optimize``, of the network as it then is.
            at_epoch: Before which epoch of training, the first is 0; None for after the last one.
            module: Path of the part to make smaller, such as ``backbone``; empty for the whole module. It must be
                called with the first element of a batch of the training data.
            examples: How many examples of the training data to look at; labels are not used.
            **options: Further options of ``bottleneck_opt.optimize``, such as ``passes`` or ``exclude``.

        Raises:
            InputError: A number is out of range.
        """
        if (at_epoch is not None and at_epoch < 0) or examples < 1:
            raise InputError(
                f"Compress: got at_epoch={at_epoch}, examples={examples}; expected at_epoch of at least 0, or None for "
                "after training, and at least one example."
            )
        self.budget, self.at_epoch, self.module, self.examples = budget, at_epoch, module, examples
        self.options = options
        self.result: bo.Result | None = None
        self.plan: Plan | None = None

    @property
    def state_key(self) -> str:
        """Under what name a checkpoint holds the plan: several of these callbacks may be used at different epochs."""
        return self._generate_state_key(at_epoch=self.at_epoch, module=self.module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before any time is spent, and be told of a checkpoint before its weights are loaded.

        Lightning tells callbacks of a checkpoint only after its weights were loaded, but the module before: so the
        module's hook is wrapped until :meth:`teardown`.
        """
        if trainer.world_size > 1:
            raise NotAvailableError(
                f"Compress: got {trainer.world_size} processes; expected one, as they would hold on to parameters that "
                "are gone. Make the network smaller before, with bottleneck_opt.optimize(model) under torchrun."
            )
        own = pl_module.on_load_checkpoint

        def build_then(checkpoint: dict[str, Any]) -> None:
            own(checkpoint)  # that of the callbacks before this one too: their plans come first
            state = checkpoint.get("callbacks", {}).get(self.state_key, {})
            if "plan" in state and self.plan is None:
                self._build(pl_module, Plan.from_json(state["plan"]))

        vars(pl_module)["on_load_checkpoint"] = build_then

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module's hook as it was."""
        vars(pl_module).pop("on_load_checkpoint", None)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the network smaller where this is the epoch."""
        if self.at_epoch is not None and trainer.current_epoch == self.at_epoch and self.plan is None:
            before = remember(trainer, pl_module)
            self._compress(trainer, pl_module)
            rebuild(trainer, pl_module, before)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the network smaller where it was to be after training."""
        if self.at_epoch is None and self.plan is None:
            self._compress(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The plan as text, for the checkpoint."""
        return {} if self.plan is None else {"plan": self.plan.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Know the plan of a checkpoint; the network was built by :meth:`setup`."""
        if "plan" in state_dict:
            self.plan = Plan.from_json(state_dict["plan"])

    def _compress(self, trainer: Trainer, module: LightningModule) -> None:
        target = find_target(module, self.module)
        batches = list(_take(trainer, self.examples))
        if not batches:
            raise InputError("Compress: the training data has no batch; expected at least one to look at.")
        options = {"progress": False, **self.options}
        with detached(module):
            self.result = bo.optimize(
                target, batches[0][:1], calibration=batches, calibration_limit=self.examples, budget=self.budget,
                **options,
            )  # fmt: skip
            self.plan = self.result.plan
            exchange(module, self.module, self.result.model)
        before, after = self.result.before.cost, self.result.after.cost
        rank_zero_info(
            f"Compress: {before.macs:,} -> {after.macs:,} multiply-adds, {before.params:,} -> {after.params:,} "
            f"parameters, {len(self.plan.steps)} layers rewritten"
        )

    def _build(self, module: LightningModule, plan: Plan) -> None:
        with detached(module):
            exchange(module, self.module, rewrite_structure(find_target(module, self.module), plan))
        self.plan = plan


def _take(trainer: Trainer, examples: int) -> Iterator[torch.Tensor]:
    """The inputs of the first batches of the training data, until there are enough examples."""
    loader = trainer.train_dataloader
    counted = 0
    for batch in itertools.islice(loader if loader is not None else (), examples):
        first = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(first, torch.Tensor):
            raise InputError(
                f"Compress: got batches of {type(batch).__name__}; expected a tensor, or a tuple whose first element "
                "is the input. Make the network smaller with bottleneck_opt.optimize(model, inputs, calibration=...)."
            )
        yield first
        counted += len(first)
        if counted >= examples:
            return
