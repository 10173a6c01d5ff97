"""The demo from start to end: train, compress to two budgets, measure, draw, and say what to open."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bottleneck_opt.demo.digits import Digits, DigitsResNet, accuracy, load_digits, train
from bottleneck_opt.diagrams import renderer
from bottleneck_opt.files import write_whole
from bottleneck_opt.graph import Cost
from bottleneck_opt.optimizer import optimize
from bottleneck_opt.progress import Stages
from bottleneck_opt.result import Result

BUDGETS = (0.5, 0.25)
CALIBRATION_IMAGES = 64
EPOCHS = 16
SEED = 0
RECIPE = "digits-resnet-1"


@dataclass(frozen=True)
class Row:
    """One line of the demo's table: a model, its accuracy on the test digits and its cost."""

    model: str
    accuracy: float
    kl: float
    macs: int
    params: int
    milliseconds: float


def run_demo(folder: Path, *, as_json: bool = False) -> list[Row]:
    """Train (or read from the cache), compress, print the table and write all files under ``folder``.

    Args:
        folder: Gets one sub-folder a budget.
        as_json: Print the table as JSON and show no progress.

    Raises:
        NotAvailableError: scikit-learn is missing.
        FileError: The folder cannot be written.
    """
    digits = load_digits(SEED)
    model = trained_model(digits, cache_file(), shown=not as_json)
    images = digits.train_x[:CALIBRATION_IMAGES]
    results = {
        budget: optimize(model, digits.test_x[:1], calibration=images, budget=budget, seed=SEED, progress=not as_json)
        for budget in BUDGETS
    }
    saved = {budget: result.save(folder / f"{budget:g}") for budget, result in results.items()}
    rows = _make_rows(model, results, digits)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _print_table(rows)
        _print_what_next(saved)
    return rows


def cache_file() -> Path:
    """Where the trained weights are kept for the next run."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "bottleneck-opt" / f"{RECIPE}.safetensors"


def trained_model(digits: Digits, cache: Path, *, shown: bool) -> nn.Module:
    """The trained network, read from the cache when it holds this recipe, else trained and put there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = DigitsResNet()
    state = _read_cache(cache)
    if state is not None and _fits(model, state):
        _say(f"trained weights: {cache}", shown)
        model.load_state_dict(state)
        return model.eval()
    with Stages(shown=shown).stage("train", total=EPOCHS) as advance:
        train(model, digits, epochs=EPOCHS, seed=SEED, advance=advance)
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_whole(cache, safetensors.torch.save(dict(model.state_dict())))
    return model


def _read_cache(cache: Path) -> dict[str, Tensor] | None:
    if not cache.is_file():
        return None
    try:
        return safetensors.torch.load_file(cache)
    except (OSError, safetensors.SafetensorError) as error:
        _say(f"{cache} cannot be used ({error}); training again", shown=True)
        return None


def _fits(model: nn.Module, state: dict[str, Tensor]) -> bool:
    expected = {name: value.shape for name, value in model.state_dict().items()}
    return expected == {name: value.shape for name, value in state.items()}


def _say(text: str, shown: bool) -> None:
    if shown:
        print(text, file=sys.stderr)


def _make_rows(model: nn.Module, results: dict[float, Result], digits: Digits) -> list[Row]:
    first = results[BUDGETS[0]]
    rows = [_measure("before", model, first.before.cost, _milliseconds(first)[0], original=model, digits=digits)]
    for budget, result in results.items():
        time = _milliseconds(result)[1]
        name = f"macs={budget:g}"
        rows.append(_measure(name, result.model, result.after.cost, time, original=model, digits=digits))
    return rows


def _milliseconds(result: Result) -> tuple[float, float]:
    speed = result.verification.speed
    return (float("nan"), float("nan")) if speed is None else (speed.before, speed.after)


def _measure(
    name: str, model: nn.Module, cost: Cost, milliseconds: float, *, original: nn.Module, digits: Digits
) -> Row:
    right = accuracy(model, digits.test_x, digits.test_y)
    return Row(name, right, mean_kl(original, model, digits.test_x), cost.macs, cost.params, milliseconds)


def mean_kl(original: nn.Module, changed: nn.Module, images: Tensor) -> float:
    """Mean Kullback-Leibler divergence of two classifiers' softmax over images, both in eval mode."""
    with torch.no_grad():
        expected, got = original(images).log_softmax(1), changed(images).log_softmax(1)
    return float(F.kl_div(got, expected, reduction="batchmean", log_target=True))


def _print_table(rows: list[Row]) -> None:
    table = Table("model", title="digits ResNet, no training, 64 unlabelled images, measured on 797 test digits")
    for heading in ("accuracy", "KL to original", "MACs", "params", "ms a call"):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = f" ({row.macs / rows[0].macs:.0%})"
        table.add_row(row.model, f"{row.accuracy:.2%}", f"{row.kl:.4f}", f"{row.macs / 1e6:.1f} M{ratio}",
                      f"{row.params / 1e3:.0f} k", f"{row.milliseconds:.2f}")  # fmt: skip
    Console().print(table)


def _print_what_next(saved: dict[float, Path]) -> None:
    smallest = saved[BUDGETS[-1]]
    picture = "diff.svg" if renderer() else "diff.dot"
    print(f"Open {smallest / 'report.html'} for the report, {smallest / picture} for what changed.")
    print("Load the result:")
    print("    import bottleneck_opt as bo")
    print("    from bottleneck_opt.demo.digits import DigitsResNet")
    print(f'    model = bo.load("{smallest.as_posix()}", DigitsResNet()).eval()')
