"""Several processes come to the same plan as one. The tests start real ones, which talk over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._C._distributed_c10d import TCPStore

from bottleneck_opt import RanksError
from bottleneck_opt.distribution import ALONE, Elsewhere, Ranks, joined_ranks, run_on_ranks

ROOT = Path(__file__).parents[1]
NETS = """
import os, torch
from torch import nn

class Checked(nn.Module):
    def forward(self, x):
        if x.abs().max() > 50:
            raise RuntimeError("too large")
        return x

def unseeded():
    return nn.Sequential(
        Checked(), nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(6),
    )

def net():
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    made = unseeded()
    made(torch.zeros(1, 3, 9, 9))
    return made

def shorter():
    return net() if os.environ["RANK"] == "0" else net()[:-1]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks and data in files."""
    made = tmp_path_factory.mktemp("ranks")
    (made / "nets.py").write_text(NETS, encoding="utf-8")
    x = torch.randn(80, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    np.save(made / "x.npy", x.numpy())
    x[70, 0, 0, 0] = 99  # in the second batch, which the second rank runs
    np.save(made / "bad.npy", x.numpy())
    return made


def run(folder: Path, ranks: int, model: str, out: str, *options: str) -> list[tuple[int, str]]:
    """Exit code and messages of each process, started as torchrun starts them, with a store that outlives them."""
    arguments = ("optimize", f"nets.py:{model}", "--input", "1x3x9x9", "--budget", "0.5", "--out", out, "--json")
    agent = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if ranks > 1:
        common |= {
            "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(agent.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "bottleneck_opt", *arguments, *options],
            cwd=folder, env={**common, "RANK": str(rank)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    return [(process.returncode, errors) for process, errors in wait(started)]


def wait(started: Sequence[subprocess.Popen[str]]) -> list[tuple[subprocess.Popen[str], str]]:
    try:
        return [(process, process.communicate(timeout=300)[1]) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def messages(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("error: ")]


def test_two_processes_come_to_the_plan_and_the_weights_of_one(folder: Path) -> None:
    """The second rank builds its model with other random weights and is given those of the first."""
    (one, _), *two = (
        *run(folder, 1, "net", "one", "--calibration", "x.npy"),
        *run(folder, 2, "net", "two", "--calibration", "x.npy"),
    )
    assert [one, *(code for code, _ in two)] == [0, 0, 0]
    for name in ("plan.json", "model.safetensors"):
        assert (folder / "two" / name).read_bytes() == (folder / "one" / name).read_bytes()
    assert b'"form"' in (folder / "two" / "plan.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_some_ranks_go_on_from_what_others_kept(folder: Path, first: int, second: int) -> None:
    options = ("--calibration", "x.npy", "--cache", f"cache{first}")
    assert [code for code, _ in run(folder, first, "net", f"first{first}", *options)] == [0] * first
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / f"cache{first}").iterdir()}
    assert [code for code, _ in run(folder, second, "net", f"second{first}", *options)] == [0] * second
    assert {path.name: path.stat().st_mtime_ns for path in (folder / f"cache{first}").iterdir()} == kept
    for name in ("plan.json", "model.safetensors"):
        assert (folder / f"second{first}" / name).read_bytes() == (folder / f"first{first}" / name).read_bytes()


def test_one_rank_that_fails_ends_all_with_one_line(folder: Path) -> None:
    (first, errors), (second, others) = run(folder, 2, "net", "bad", "--calibration", "bad.npy")
    assert (first, second) == (1, 1)
    (line,) = messages(errors + others)
    assert line.startswith("error: calibration batch 1: the model fails on Tensor 16x3x9x9")
    assert not (folder / "bad").exists()


def test_ranks_with_other_models_are_told(folder: Path) -> None:
    (_, errors), (_, others) = run(folder, 2, "shorter", "shorter")
    (line,) = messages(errors + others)
    assert line.startswith("error: ranks: the model of rank 1 differs from that of rank 0; expected the same on all.")


# -- in one process -----------------------------------------------------------------------------------------------


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # of a scheduler, not of torchrun
    with joined_ranks() as ranks:
        assert ranks is ALONE


def test_alone_everything_stays_where_it_is() -> None:
    net = nn.Linear(2, 2)
    ALONE.share_weights(net)
    ALONE.check_agreement("anything", object())
    assert ALONE.run_alone(lambda: 5) == 5
    assert ALONE.collect(1) == ALONE.gather(1, to=0) == [1]
    assert run_on_ranks([lambda: 1, lambda: 2], ALONE) == [1, 2]


def test_the_heaviest_items_are_dealt_first() -> None:
    owners = Ranks(0, 2).deal([1, 1, 1, 3, 2])
    loads = [sum(load for load, owner in zip([1, 1, 1, 3, 2], owners, strict=True) if owner == rank) for rank in (0, 1)]
    assert loads == [4, 4]


def test_equal_items_are_dealt_in_turn_even_without_a_load() -> None:
    assert Ranks(0, 3).deal([0.0] * 6) == [0, 1, 2, 0, 1, 2]


def test_another_ranks_work_cannot_be_done_here() -> None:
    with pytest.raises(ValueError, match="rank 3's work"):
        Elsewhere(3)()


def test_an_error_says_whether_another_rank_told_the_reason() -> None:
    assert not RanksError("x").told
    assert RanksError("x", told=True).told
