from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bottleneck_opt.errors import InputError, ModelError

REASON = "needs lightning, which is not installed here: make lightning runs these tests in an environment of their own"
if importlib.util.find_spec("lightning") is None:
    pytest.skip(REASON, allow_module_level=True)

import lightning.pytorch as pl  # noqa: E402  (only where it is installed)
from bottleneck_opt_lightning import Compress  # noqa: E402

from bottleneck_opt.factored import Factored  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers, loggers and devices
X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = (X.mean((1, 2, 3)) > 0).long()


class Classifier(pl.LightningModule):
    """A small network that is all children of the LightningModule itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()
        )
        self.head = nn.Linear(24, 2)
        self.losses: list[float] = []
        self.rates: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x).mean((2, 3)))
        return out

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        self.rates.append(self.optimizers().param_groups[0]["lr"])
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), batch_size=16)


def make() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


def trainer(tmp_path: Path, epochs: int, *callbacks: pl.Callback, checkpoints: bool = False) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, callbacks=list(callbacks), accelerator="cpu", logger=False, default_root_dir=tmp_path,
        enable_checkpointing=checkpoints, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def factored(module: nn.Module) -> list[str]:
    return [name for name, each in module.named_modules() if isinstance(each, Factored)]


def test_training_goes_on_with_the_new_parameters(tmp_path: Path) -> None:
    module, callback = make(), Compress(0.5, at_epoch=1)
    run = trainer(tmp_path, 3, callback)
    run.fit(module, loader())
    assert callback.result is not None
    assert callback.result.budget_met
    trained = {id(each) for group in run.optimizers[0].param_groups for each in group["params"]}
    assert trained == {id(each) for each in module.parameters()}
    at_first = dict(callback.result.model.named_parameters())
    assert factored(module) == [step.path for step in callback.result.plan.steps if not step.in_place]
    assert sum(each.numel() for each in module.parameters()) < sum(each.numel() for each in make().parameters())
    assert at_first.keys() == dict(module.named_parameters()).keys()


def test_the_new_layers_learn(tmp_path: Path) -> None:
    class Keep(pl.Callback):
        def on_train_batch_start(self, run: pl.Trainer, module: pl.LightningModule, batch: Any, index: int) -> None:
            if index == 0 and run.current_epoch == 1:
                self.before = {name: value.clone() for name, value in module.state_dict().items()}

    module, keep = make(), Keep()
    trainer(tmp_path, 2, Compress(0.5, at_epoch=1, passes=["reduce", "expand"]), keep).fit(module, loader())
    assert factored(module)
    for name, value in module.named_parameters():
        assert not torch.equal(value, keep.before[name]), name


def test_learning_rate_and_momentum_go_on_where_they_were(tmp_path: Path) -> None:
    class Look(pl.Callback):
        def on_train_epoch_start(self, run: pl.Trainer, module: pl.LightningModule) -> None:
            state = run.optimizers[0].state
            self.momenta = {n: state[p]["momentum_buffer"] for n, p in module.named_parameters() if p in state}

    module, look = make(), Look()
    trainer(tmp_path, 2, Compress(0.5, at_epoch=1, passes=["reduce"], include=["body.2"]), look).fit(module, loader())
    assert module.rates == [0.1] * 4 + [0.05] * 4
    assert {"head.weight", "head.bias", "body.0.weight"} <= set(look.momenta)
    assert not any(name.startswith("body.2.") for name in look.momenta)


def test_before_training_and_after_it(tmp_path: Path) -> None:
    first, last = Compress(0.5), Compress(0.5, at_epoch=None)
    module = make()
    trainer(tmp_path, 1, first).fit(module, loader())
    assert factored(module)
    module = make()
    trainer(tmp_path, 1, last).fit(module, loader())
    assert factored(module)
    assert last.result is not None
    module.eval()
    assert torch.equal(module(X), last.result.model.eval()(X))


def test_a_part_alone_is_made_smaller(tmp_path: Path) -> None:
    module = make()
    body = module.body
    with pytest.raises(ModelError, match="module='boddy' is no part of Classifier; expected one of body, head"):
        trainer(tmp_path, 1, Compress(module="boddy")).fit(module, loader())
    trainer(tmp_path, 1, Compress(0.5, module="body")).fit(module, loader())
    assert module.body is not body
    assert all(name.startswith("body.") for name in factored(module))


def test_training_is_resumed_from_a_checkpoint_of_the_smaller_network(tmp_path: Path) -> None:
    module = make()
    run = trainer(tmp_path, 2, Compress(0.5, at_epoch=1), checkpoints=True)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "small.ckpt")
    resumed, callback = make(), Compress(0.5, at_epoch=1)
    again = trainer(tmp_path, 3, callback, checkpoints=True)
    again.fit(resumed, loader(), ckpt_path=tmp_path / "small.ckpt")
    assert factored(resumed) == factored(module)
    assert callback.result is None
    assert callback.plan is not None
    assert len(resumed.losses) == 4
    tested = make()
    trainer(tmp_path, 2, Compress(0.5, at_epoch=1)).validate(tested, loader(), tmp_path / "small.ckpt")
    assert torch.equal(tested.eval()(X), module.eval()(X))


def test_in_steps_and_resumed_after_both(tmp_path: Path) -> None:
    def steps() -> list[pl.Callback]:
        return [Compress(0.7, at_epoch=0, passes=["expand"]), Compress(0.8, at_epoch=1, passes=["reduce", "expand"])]

    module, resumed = make(), make()
    run = trainer(tmp_path, 2, *steps(), checkpoints=True)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "small.ckpt")
    assert any(name.count(".") > 1 for name in factored(module))
    trainer(tmp_path, 3, *steps()).fit(resumed, loader(), ckpt_path=tmp_path / "small.ckpt")
    assert factored(resumed) == factored(module)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at_epoch=-1, examples=64; expected at_epoch of at least 0"):
        Compress(at_epoch=-1)
    pictures: Any = [{"image": x} for x in X]
    named: Any = DataLoader(pictures, batch_size=16)
    with pytest.raises(InputError, match="got batches of dict; expected a tensor, or a tuple"):
        trainer(tmp_path, 1, Compress()).fit(make(), named)
