"""A compressed model in DistributedDataParallel: two processes, which talk over gloo, train it together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bottleneck_opt as bo
from tests.networks import Residual, noise, seeded

X = noise(8, 3, 8, 8)
RANKS = 2


def compress(model: nn.Module, **options: Any) -> bo.Result:
    return bo.optimize(model, X[:1], calibration=X, budget=0.5, allow_slower=True, progress=False, **options)


def join(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=RANKS)


def train_two_steps(rank: int, folder: Path) -> None:
    """Load what the parent saved into a network with other weights, train on data of this rank's own."""
    join(rank, folder)
    loaded = bo.load(folder / "out", seeded(Residual, seed=rank)).train()
    parallel = DistributedDataParallel(loaded)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    for step in range(2):
        x = noise(4, 3, 8, 8, seed=10 * step + rank)
        nn.functional.cross_entropy(parallel(x), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(loaded.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def optimize_wrapped(rank: int, folder: Path) -> None:
    """Compress a model inside its wrapper, and put the small one into another."""
    join(rank, folder)
    wrapped = DistributedDataParallel(seeded(Residual))
    result = compress(wrapped)
    DistributedDataParallel(result.model)(X).sum().backward()
    result.save(folder / f"out{rank}")
    dist.destroy_process_group()


def spawn(work: object, folder: Path) -> None:
    mp.spawn(work, args=(folder,), nprocs=RANKS)  # type: ignore[attr-defined, no-untyped-call]  # not in torch's stubs


def states(paths: Sequence[Path]) -> list[dict[str, torch.Tensor]]:
    return [torch.load(path, weights_only=True) for path in paths]


def test_ranks_that_load_a_result_train_it_to_the_same_weights(tmp_path: Path) -> None:
    result = compress(seeded(Residual))
    result.save(tmp_path / "out")
    spawn(train_two_steps, tmp_path)
    one, two = states([tmp_path / f"{rank}.pt" for rank in range(RANKS)])
    trained = {name for name, _ in result.model.named_parameters()}
    assert trained <= one.keys() == two.keys() == result.model.state_dict().keys()
    assert all(torch.equal(one[name], two[name]) for name in trained)
    assert not any(torch.equal(one[name], value) for name, value in result.model.named_parameters())


def test_a_wrapped_model_is_compressed_as_the_one_inside(tmp_path: Path) -> None:
    spawn(optimize_wrapped, tmp_path)
    compress(seeded(Residual)).save(tmp_path / "plain")
    for name in ("plan.json", "model.safetensors"):
        plain = (tmp_path / "plain" / name).read_bytes()
        assert [(tmp_path / f"out{rank}" / name).read_bytes() for rank in range(RANKS)] == [plain] * RANKS


def test_batch_norms_of_a_result_become_synchronised_and_come_back(tmp_path: Path) -> None:
    """Only the conversion: torch trains with SyncBatchNorm on accelerators alone."""
    result = compress(seeded(Residual))
    expected = result.model(X)
    count = sum(isinstance(module, nn.BatchNorm2d) for module in result.model.modules())
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(result.model)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules()) == count > 0
    assert torch.equal(synchronised.eval()(X), expected)
    loaded = bo.load(result.save(tmp_path / "out"), seeded(Residual, seed=1)).eval()
    assert torch.equal(loaded(X), expected)


def test_channels_are_dropped_across_synchronised_batch_norms() -> None:
    plain = compress(seeded(Residual), passes=["select"])
    synchronised = compress(nn.SyncBatchNorm.convert_sync_batchnorm(seeded(Residual)), passes=["select"])
    assert synchronised.plan.selections == plain.plan.selections != ()
    assert torch.equal(synchronised.model(X), plain.model(X))
