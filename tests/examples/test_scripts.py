from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.examples.running import EXAMPLES, PICTURES, SCRIPTS, load_example
from tests.networks import measured

REFRESH = "the committed picture says something else; look at both, then run: python -m tests.examples.refresh"
MOST_BYTES = 100_000


def run(name: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """What an example returns and what it prints; its picture must be small."""
    result = load_example(name).main(pictures)
    assert 1000 < (pictures / f"{name}.svg").stat().st_size < MOST_BYTES
    return result, capsys.readouterr().out


def words(picture: Path) -> list[str]:
    """What is written in a picture, wherever it stands, but for the milliseconds, which no two runs share."""
    written = re.findall(r"<text[^>]*>([^<]*)</text>", picture.read_text(encoding="utf-8"))
    return sorted(re.sub(r"time a call .*", "", each) for each in written)


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the lines that begin with a word."""
    return [line.split() for line in text.splitlines() if line.split()[:1] == [first]]


def right(row: list[str]) -> float:
    """The percentage at the end of a row."""
    return float(row[-1].removesuffix("%"))


def test_filter_sizes_are_counted_as_in_the_article(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text = run("filter_sizes", tmp_path, capsys)
    assert rows(text, "3x3") == [["3x3", "4x4x2", "56", "864"]]
    assert rows(text, "1x1") == [["1x1", "6x6x2", "8", "216"]]
    assert re.findall(r"\(None.*?\)", text) == ["(None, 2, 4, 4)", "(None, 2, 6, 6)"]
    assert re.findall(r" Total params: (.*)", text) == ["56 (224.00 B)", "8 (32.00 B)"]
    assert text.count("Non-trainable params: 0 (0.00 B)") == 2
    assert words(tmp_path / "filter_sizes.svg") == words(PICTURES / "filter_sizes.svg"), REFRESH


def test_the_bottleneck_is_found_at_the_planted_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, text = run("bottleneck", tmp_path, capsys)
    assert [(step.form, step.ranks) for step in result.plan.steps] == [("reduce", (16,))]
    assert rows(text, "before") == [["before", "conv", "5x5", "32x28x28", "120,422,400", "153,632"]]
    assert rows(text, "after") == [
        ["after", "conv.reduce", "1x1", "16x28x28", "2,408,448", "3,072"],
        ["after", "conv.conv", "5x5", "32x28x28", "10,035,200", "12,832"],
    ]
    assert "120,422,400 -> 12,443,648 multiply-adds, 9.68 times fewer" in text
    assert measured(result.verification) < 1e-9
    assert words(tmp_path / "bottleneck.svg") == words(PICTURES / "bottleneck.svg"), REFRESH


def test_network_in_network_is_counted_trained_and_halved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, text = run("network_in_network", tmp_path, capsys)
    assert "ReLU on 6x6: 16 applications behind a 3x3 filter, 36 behind a 1x1" in text
    assert "for CIFAR-10: 966,986 parameters, 222,486,528 multiply-adds" in text
    (trained,), (half,) = rows(text, "trained"), rows(text, "half")
    assert trained[1:3] == ["3,558,912", "62,094"]
    assert result.after.cost.macs <= 0.5 * result.before.cost.macs
    assert half[1] == f"{result.after.cost.macs:,}"
    assert right(trained) > 97
    assert right(half) > right(trained) - 1


INCEPTION = [
    ["3a", "308,281,344", "128,049,152", "2.41", "96,", "16", "96,", "16"],
    ["3b", "867,041,280", "304,267,264", "2.85", "128,", "32", "128,", "32"],
    ["4a", "313,098,240", "73,608,192", "4.25", "96,", "16", "96,", "16"],
    ["4b", "385,351,680", "87,908,352", "4.38", "112,", "24", "112,", "24"],
    ["4c", "411,041,792", "99,850,240", "4.12", "128,", "24", "128,", "24"],
    ["4d", "438,337,536", "118,515,712", "3.70", "144,", "32", "144,", "32"],
    ["4e", "668,946,432", "169,996,288", "3.94", "160,", "32", "160,", "32"],
    ["5a", "263,524,352", "51,079,168", "5.16", "160,", "32", "160,", "32"],
    ["5b", "292,225,024", "70,697,984", "4.13", "192,", "48", "192,", "48"],
]


def test_googlenets_reductions_are_found_narrow_and_wide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = load_example("inception").main(tmp_path, names=("3a", "4a"))
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [INCEPTION[0], INCEPTION[2]]
    used = [{step.path: step.pass_name for step in result.plan.steps} for result in results]
    assert used == [{"three": "reduce", "five": "reduce"}, {"three": "reduce", "five": "wide-reduce"}]
    assert max(measured(result.verification) for result in results) < 1e-9
    assert words(tmp_path / "inception.svg") == words(PICTURES / "inception.svg"), REFRESH


@pytest.mark.slow
def test_the_reductions_of_all_nine_modules_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, text = run("inception", tmp_path, capsys)
    assert [line.split() for line in text.splitlines()[1:]] == INCEPTION


def test_one_bottleneck_for_all_branches_stays_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, text = run("shared_bottleneck", tmp_path, capsys)
    assert re.findall(r"\d+(?:,\d{3}){2}", text.splitlines()[0]) == ["308,281,344", "69,844,992", "60,211,200"]
    separate, shared = (line.split()[-2:] for line in text.splitlines()[2:])
    assert separate[0] == shared[0] == "60,211,200"
    assert float(separate[1]) > 1e-3
    assert float(shared[1]) < 1e-9
    assert [(each.members, each.rank) for each in result.plan.sharings] == [(("one", "three", "five"), 32)]
    assert words(tmp_path / "shared_bottleneck.svg") == words(PICTURES / "shared_bottleneck.svg"), REFRESH


def test_query_key_and_value_share_a_bottleneck(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, text = run("self_attention", tmp_path, capsys)
    block = [line.split() for line in text.splitlines()[1:6]]
    assert block == [
        ["attention.query", "32,768", "520"], ["attention.key", "32,768", "520"],
        ["attention.value", "262,144", "4,160"], ["matmul", "32,768", "0"], ["matmul", "262,144", "0"],
    ]  # fmt: skip
    (trained,), (optimised,) = rows(text, "trained"), rows(text, "optimised")
    assert trained[1:3] == ["2,411,136", "61,755"]
    assert optimised[1] == f"{result.after.cost.macs:,}"
    assert result.after.cost.macs <= 0.9 * result.before.cost.macs
    assert right(trained) > 95
    assert right(optimised) > right(trained) - 1
    members = ("attention.query", "attention.key", "attention.value")
    assert [each.members for each in result.plan.sharings] == [members]
    assert f"{', '.join(members)} share a 1x1 to {result.plan.sharings[0].rank} of 64 channels" in text


def test_the_attention_block_is_the_formula_of_its_paper() -> None:
    torch.manual_seed(0)
    net, x = load_example("self_attention").SelfAttention(16), torch.randn(2, 16, 3, 4)
    assert torch.equal(net(x), x)
    net.scale.data.fill_(2.0)
    query, key, value = (layer(x).flatten(2) for layer in (net.query, net.key, net.value))
    scores = torch.einsum("bcj,bci->bji", query, key)
    expected = torch.einsum("bji,bci->bcj", scores.softmax(2), value)
    assert torch.allclose(net(x), x + 2 * expected.view_as(x), atol=1e-5)


def test_both_steps_to_a_small_file_keep_the_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = load_example("deploy").main(tmp_path)
    text = capsys.readouterr().out
    names = ["original_float32", "original_int8", "quarter_float32", "quarter_int8"]
    table = [rows(text, f"{name}.onnx")[0] for name in names]
    accuracies, sizes = [right(row) for row in table], [each.size for each in written]
    assert accuracies[0] > 97
    assert min(accuracies) > accuracies[0] - 1
    assert [int(row[1]) for row in table] == [round(size / 1000) for size in sizes]
    assert sizes[1] < 0.3 * sizes[0]
    assert sizes[2] < 0.4 * sizes[0]
    assert sizes[3] < 0.5 * sizes[2]
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.onnx" for name in names}
    quantized = [each.quantized for each in written if each.quantized is not None]
    assert [each.held_out for each in quantized] == [True, True]
    assert max(each.change or 0 for each in quantized) < 5e-3
    assert "top class (16 examples, held out)" in text


def test_fine_tuning_brings_accuracy_back_and_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = load_example("fine_tune").main(tmp_path, before=3, after=3)
    text = capsys.readouterr().out
    names = ("original", "compressed", "fine-tuned", "loaded", "checkpoint")
    original, compressed, tuned, loaded, again = (rows(text, name)[0] for name in names)
    assert right(compressed) < right(original) - 0.5
    assert right(tuned) > right(compressed) + 0.5
    assert right(tuned) == right(loaded) == right(again)
    assert result.after.cost.macs <= 0.03 * result.before.cost.macs
    assert tuned[1] == compressed[1] == f"{result.after.cost.macs:,}"
    report = (tmp_path / "small" / "report.json").read_text(encoding="utf-8")
    assert '"weights_changed": true' in report


def test_the_index_names_every_example_and_its_picture() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", index)
    named = {link or source for link, source in links}
    assert {f"{name}.py" for name in SCRIPTS} | {f"pictures/{name}.svg" for name in SCRIPTS} <= named
    assert {file.name for file in EXAMPLES.glob("*.[pi]*[yb]") if file.name != "__pycache__"} <= named
    assert [link for link in named if not link.startswith("http") and not (EXAMPLES / link).exists()] == []
