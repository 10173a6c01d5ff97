"""Fine-tuning a compressed network in a plain PyTorch loop, and how to save what comes of it.

`result.model` is a module of your own class with ordinary layers in it: any optimizer, scheduler and loss takes it, and
labels are yours to use. It is trained in place here; `result.save` then writes the weights of that moment, and the
report says that they were measured before. A plain state dict works as well, for checkpoints along the way:
`bo.load(folder, MyNetwork())` makes the structure anew, `load_state_dict` fills it. Nothing is pickled.

On several GPUs, wrap it like any other module, each process for itself:

    model = bo.load("out", DigitsResNet()).to(rank)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # where batches are small
    model = DistributedDataParallel(model, device_ids=[rank])

Run: python examples/fine_tune.py  (needs scikit-learn; takes a minute)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.demo.digits import Digits, DigitsResNet, accuracy, load_digits, train

BUDGET = 0.03


def fine_tune(model: nn.Module, digits: Digits, *, epochs: int) -> None:
    """A loop as anybody writes it, with labels."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(digits.train_x), generator=generator).split(50):
            loss = F.cross_entropy(model(digits.train_x[index]), digits.train_y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    model.eval()


def main(folder: Path, *, before: int = 6, after: int = 8) -> bo.Result:
    """Train, compress hard, fine-tune with labels, save and load again.

    Args:
        folder: Gets the result.
        before, after: Epochs of training before and after compressing.
    """
    digits = load_digits()
    torch.manual_seed(0)
    model = DigitsResNet()
    train(model, digits, epochs=before)
    result = bo.optimize(model, digits.test_x[:1], calibration=digits.train_x[:64], budget=BUDGET, progress=False)
    print(f"on digits     multiply-adds  right of {len(digits.test_x)} unseen")
    report("original", model, result.before.cost.macs, digits)
    report("compressed", result.model, result.after.cost.macs, digits)

    fine_tune(result.model, digits, epochs=after)
    report("fine-tuned", result.model, result.after.cost.macs, digits)

    result.save(folder / "small")  # the fine-tuned weights, with plan, report and pictures
    report("loaded", bo.load(folder / "small", DigitsResNet()).eval(), result.after.cost.macs, digits)

    torch.save(result.model.state_dict(), folder / "checkpoint.pt")  # or as you always do
    again = bo.load(folder / "small", DigitsResNet())
    again.load_state_dict(torch.load(folder / "checkpoint.pt", weights_only=True))
    report("checkpoint", again.eval(), result.after.cost.macs, digits)
    return result


def report(name: str, model: nn.Module, macs: int, digits: Digits) -> None:
    """One line of the table."""
    print(f"{name:12}  {macs:13,}  {accuracy(model, digits.test_x, digits.test_y):.1%}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
