import math
import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import bottleneck_opt as bo
from bottleneck_opt.diagrams import draw_rewrite, render_svg
from bottleneck_opt.diagrams.arithmetic import list_factors, sentence
from bottleneck_opt.diagrams.drawn import Drawing
from bottleneck_opt.errors import InputError
from bottleneck_opt.graph import Cost, Node
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.outcome import Outcome
from bottleneck_opt.result import Result
from tests.networks import classifier, noise, seeded
from tests.samples import residual_outcome
from tests.test_sharing import Branches, plant

RECIPE = bo.Recipe(refit=False, rounds=0, joint=0)


@cache
def rewritten(kind: str) -> Result:
    """A small network rewritten by one pass."""
    net: nn.Module = plant(seeded(Branches)) if kind == "shared" else seeded(classifier)
    x = noise(8, 3, 8, 8)
    return bo.optimize(
        net, x[:1], calibration=x, budget=0.6, passes=[kind], recipe=RECIPE, progress=False, seed=0
    )  # fmt: skip


def words(digraph: Drawing) -> str:
    return re.sub(r"<[^>]*>", " ", digraph.source).replace("&gt;", ">").replace("&lt;", "<").replace("&#x27;", "'")


def node(layer: LayerSpec, read: tuple[int, ...], made: tuple[int, ...], macs: int) -> Node:
    return Node("n", "module", layer.kind, "n", (), (), (read,), (made,), layer=layer, cost=Cost(macs=macs))


@pytest.mark.parametrize("kind", ["reduce", "expand", "tucker", "spatial", "select", "shared"])
def test_every_step_of_every_pass_can_be_drawn(kind: str) -> None:
    result = rewritten(kind)
    assert result.plan.steps
    for step in result.plan.steps:
        shown = words(result.draw("pass", step.path))
        assert step.path in shown
        assert f"made by the pass {kind}" in shown
        assert "- REMOVED" in shown
        assert shown.count("+ NEW") == len(step.layers) + (kind == "shared")
        assert render_svg(result.draw("pass", step.path)) is not None


def test_the_products_of_all_parts_are_shown_and_right() -> None:
    for kind in ("reduce", "tucker", "spatial"):
        result = rewritten(kind)
        for step in result.plan.steps:
            found = re.findall(r"\b(\d+(?: x \d+)+) =", words(result.draw("pass", step.path)))
            costs = [result.before.structure.calls_of(step.path)[0].cost.macs]
            costs += [result.after.structure.calls_of(path)[0].cost.macs for path in step.layer_paths]
            products = [math.prod(map(int, each.split(" x "))) for each in found]
            assert products == [costs[0], *costs]  # the sentence at the top, then a card each


def test_the_sentence_says_before_after_and_how_much_less() -> None:
    conv = LayerSpec("c", "Conv2d", 32, 192, (5, 5), (1, 1), (2, 2), (1, 1))
    parts = [LayerSpec("a", "Conv2d", 32, 16, (1, 1), (1, 1), (0, 0), (1, 1)),
             LayerSpec("b", "Conv2d", 16, 192, (5, 5), (1, 1), (2, 2), (1, 1))]  # fmt: skip
    read, made = (1, 32, 28, 28), (1, 192, 28, 28)
    before = [node(conv, read, made, 192 * 32 * 25 * 784)]
    after = [node(parts[0], read, (1, 16, 28, 28), 401408), node(parts[1], (1, 16, 28, 28), made, 60211200)]
    assert sentence(before, after) == "192 x 32 x 5 x 5 x 28 x 28 = 120.4 MMAC -> 0.4 + 60.2 MMAC (-50 %)"


@pytest.mark.parametrize(
    ("layer", "read", "made", "factors"),
    [
        (LayerSpec("g", "Conv2d", 8, 8, (3, 3), groups=8), (2, 8, 4, 4), (2, 8, 4, 4), (8, 1, 3, 3, 4, 4, 2)),
        (LayerSpec("t", "ConvTranspose2d", 4, 6, (2, 2)), (1, 4, 5, 5), (1, 6, 10, 10), (6, 4, 2, 2, 5, 5)),
        (LayerSpec("l", "Linear", 3, 4), (2, 7, 3), (2, 7, 4), (4, 3, 2, 7)),
    ],
)
def test_groups_transposed_layers_and_sequences_multiply_too(
    layer: LayerSpec, read: tuple[int, ...], made: tuple[int, ...], factors: tuple[int, ...]
) -> None:
    assert list_factors(node(layer, read, made, math.prod(factors))) == factors


def test_a_cost_that_is_no_product_is_not_written_as_one() -> None:
    layer = LayerSpec("l", "Linear", 3, 4)
    assert list_factors(node(layer, (1, 3), (1, 4), 13)) == ()


def test_the_removed_layer_stands_left_of_what_replaces_it() -> None:
    svg = render_svg(draw_rewrite(residual_outcome(), "blocks.1.conv1"))
    assert svg is not None
    left = {key: _left(svg, key) for key in ("blocks_1_conv1", "blocks_1_conv1_reduce", "blocks_1_conv1_conv")}
    assert left["blocks_1_conv1"] < min(left["blocks_1_conv1_reduce"], left["blocks_1_conv1_conv"])


def _left(svg: str, key: str) -> float:
    """The leftmost text in a node."""
    body = svg.partition(f"<title>{key}</title>")[2].partition("</g>\n</g>")[0]
    return min(float(x) for x in re.findall(r'<text [^>]*?x="([-\d.]+)"', body))


def test_neighbours_are_shown_and_nothing_else() -> None:
    figure = draw_rewrite(residual_outcome(blocks=5), "blocks.1.conv1").figure
    assert [card.key for card in figure.cards] == [
        "add", "blocks_1_conv1", "blocks_1_conv1_reduce", "blocks_1_conv1_conv", "blocks_1_conv2",
    ]  # fmt: skip


def test_a_shared_bottleneck_is_drawn_by_its_own_path_with_all_its_readers() -> None:
    result = rewritten("shared")
    sharing = result.plan.sharings[0]
    shown = words(result.draw("pass", sharing.path))
    assert all(member in shown for member in sharing.members)
    assert shown.count("- REMOVED") == len(sharing.members)


def test_dropped_channels_say_who_no_longer_makes_and_reads_them() -> None:
    result = rewritten("select")
    each = result.plan.selections[0]
    gone = each.channels - len(each.kept)
    shown = words(result.draw("pass", each.consumer))
    assert f"{gone} of the {each.channels} channels between '{each.producer}' and '{each.consumer}'" in shown


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("blocks.1.conv", "Nearest: 'blocks.1.conv1'"),
        ("stem", "left alone: 3 input channels"),
        (None, r"draw\('pass', 'blocks.1.conv1'\)"),
    ],
)
def test_a_path_that_was_not_rewritten_is_an_error_that_helps(path: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_rewrite(residual_outcome(), path)


def test_without_any_rewrite_the_error_says_so() -> None:
    with pytest.raises(InputError, match="no layer was rewritten"):
        draw_rewrite(_unchanged(), "stem")


def _unchanged() -> Outcome:
    return residual_outcome({})


def test_a_path_is_for_the_close_up_only() -> None:
    with pytest.raises(InputError, match=r"draw\('pass', 'x'\)"):
        rewritten("reduce").draw("diff", "x")


def test_a_layer_called_twice_says_that_one_call_is_shown() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(12, 12, 3, padding=1)

        def forward(self, x: Any) -> Any:
            return self.conv(torch.relu(self.conv(x))).mean((2, 3))

    x = noise(8, 12, 8, 8)
    result = bo.optimize(
        seeded(Twice), x[:1], calibration=x, budget=0.7, passes=["reduce"], recipe=RECIPE, progress=False
    )  # fmt: skip
    shown = words(result.draw("pass", "conv"))
    assert "called 2 times: the first call is shown" in shown
    assert shown.count("- REMOVED") == 1
