from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt import Result
from tests.examples.running import load_example


class Small(nn.Sequential):
    """What a reader of the README may have."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.LazyLinear(10))
        self(torch.zeros(1, 3, 32, 32))


ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_own_pass_example_keeps_all_promises_in_thirty_lines(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples" / "my_pass.py"
    runpy.run_path(str(path), run_name="__main__")
    assert "pass 'svd-linear' keeps its promises" in capsys.readouterr().out
    assert len([line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]) <= 30


def test_own_pass_example_is_used_by_the_tool() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    own = load_example("my_pass").SvdLinear(smallest=6)
    result = bo.optimize(model, torch.randn(1, 64), calibration=torch.randn(64, 64), passes=[own], progress=False)
    assert [step.form for step in result.plan.steps] == ["svd"]
    assert result.plan.steps[0].ranks >= (6,)


def test_readme_shows_the_own_pass_example_as_it_is() -> None:
    source = (ROOT / "examples" / "my_pass.py").read_text(encoding="utf-8")
    shown = source[source.index("@dataclass") : source.index("\n\nif __name__")]
    assert shown.strip() in README


def test_files_that_the_readme_links_exist() -> None:
    links = [part.split(")")[0] for part in README.split("](")[1:]]
    assert links
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_the_first_lines_of_the_readme_run_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = README.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {"MyNetwork": Small}
    exec(lines, names)
    result, loaded = names["result"], names["model"]
    assert isinstance(result, Result)
    assert isinstance(loaded, Small)
    assert result.after.cost.macs <= 0.5 * result.before.cost.macs
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(x), result.model.eval()(x))
