from pathlib import Path

import pytest

from bottleneck_opt.cli import main

FACTORY = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(FACTORY)
    return f"{tmp_path / 'nets.py'}:net"


def draw(net: str, output: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["draw", net, "--input", "1x3x8x8", "-o", str(output), *options])
    return int(stop.value.code or 0)


def test_the_command_line_takes_detail_heat_and_theme(net: str, tmp_path: Path) -> None:
    assert draw(net, tmp_path / "a.dot", "--detail", "operation", "--heat", "params", "--theme", "dark") == 0
    text = (tmp_path / "a.dot").read_text()
    assert "share of the parameters" in text
    assert 'bgcolor="#15181c"' in text


@pytest.mark.parametrize("option", [("--detail", "fine"), ("--heat", "joules"), ("--theme", "blue")])
def test_another_word_is_wrong_usage_that_lists_the_choices(
    net: str, tmp_path: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert draw(net, tmp_path / "a.dot", *option) == 2
    assert option[1] in capsys.readouterr().err
    assert not (tmp_path / "a.dot").exists()
