"""A fixed sample of the zoo, all kinds of models included; ``make zoo`` runs all of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from bottleneck_opt.sites import Site, Weights
from tests.zoo import orthogonal
from tests.zoo.check import check_entry
from tests.zoo.entries import Entry, noise_of
from tests.zoo.row import Row, read_row
from tests.zoo.run import Limits, run_models
from tests.zoo.table import make_details, make_table

SAMPLE = (
    "hand_written/tied_weights", "hand_written/shared_block", "hand_written/lazy", "hand_written/weight_norm",
    "hand_written/spectral_norm_old", "hand_written/weight_standardised", "hand_written/same_padding_subclass",
    "hand_written/on_parameter", "hand_written/held_in_a_list", "hand_written/output_size", "hand_written/hooks",
    "hand_written/bfloat16", "hand_written/channels_last", "hand_written/dataclass_input", "hand_written/in_place",
    "networks/tcn", "networks/audio_unet", "networks/gan_generator", "networks/convgru_flow", "networks/autoencoder3d",
    "networks/transformer_encoder", "yolo/c2f_anchor_free", "torchvision/mobilenet_v3_small",
    "torchvision/lraspp_mobilenet_v3_large", "torchvision/ssdlite320_mobilenet_v3_large", "torchvision/raft_small",
    "timm/resnet.test_resnet", "smp/linknet.resnet18", "transformers/SegformerForSemanticSegmentation",
    "transformers/MaskFormerForInstanceSegmentation", "diffusers/unet2d", "monai/unet3d",
)  # fmt: skip
NOTHING_TO_REWRITE = frozenset(
    ["hand_written/on_parameter", "hand_written/held_in_a_list", "networks/transformer_encoder"]
)


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {row.name: row for row in run_models(SAMPLE, Limits(seconds=90), processes=2)}


@pytest.mark.parametrize("name", SAMPLE)
def test_model_is_traced_priced_drawn_and_rewritten_exactly(rows: dict[str, Row], name: str) -> None:
    row = rows[name]
    assert row.finished
    assert not row.failures
    assert row.traced
    assert row.drawn
    assert row.macs == row.torch_macs
    assert row.replay_exact or row.replay_reason
    assert not row.mismatched
    assert row.compared != (name in NOTHING_TO_REWRITE)


def test_sample_has_every_family() -> None:
    assert {name.partition("/")[0] for name in SAMPLE} == {
        "hand_written", "networks", "yolo", "torchvision", "timm", "smp", "transformers", "diffusers", "monai",
    }  # fmt: skip


# -- the zoo's own instruments ------------------------------------------------------------------------------------


def test_a_wrong_rewriting_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = orthogonal._fill_before

    def wrong(site: Site) -> Sequence[Weights]:
        first, second = right(site)
        return first, Weights(second.weight.flip(0), second.bias)

    net = Entry("test", "net", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), noise_of(1, 3, 8, 8))
    assert not check_entry(net).mismatched
    monkeypatch.setattr(orthogonal, "_fill_before", wrong)
    assert check_entry(net).mismatched


def test_an_output_that_ignores_the_input_is_marked() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            silence: torch.Tensor = self.conv(x) * 0
            return silence

    row = check_entry(Entry("test", "deaf", Deaf, noise_of(1, 3, 8, 8)))
    assert row.vacuous
    assert not row.compared


def test_a_failure_names_its_stage() -> None:
    row = check_entry(Entry("test", "wrong", lambda: nn.Conv2d(3, 4, 3), noise_of(1, 5, 8, 8)))
    assert list(row.failures) == ["build"]
    assert "channels" in row.failures["build"]


def test_a_model_that_takes_too_long_is_ended() -> None:
    (row,) = run_models(["torchvision/resnet18"], Limits(seconds=0.2))
    assert list(row.failures) == ["time"]


def test_a_family_that_is_not_there_fails_by_name() -> None:
    (row,) = run_models(["nobody/net"], Limits())
    assert "nobody" in row.failures["load"]


def test_table_counts_by_family() -> None:
    row = check_entry(Entry("test", "net", lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), noise_of(1, 3, 8, 8)))
    again = read_row(row.to_json())
    assert again == row
    broken = Row("test/broken", "test", failures={"trace": "no"})
    assert "| test | 2 | 1 | 1 | 1 | 1 | 0 | 100% |" in make_table([again, broken])
    assert "test/broken: trace: no" in make_details([again, broken])
