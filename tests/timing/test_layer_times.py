from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bottleneck_opt.costs import price_layers
from bottleneck_opt.layers import LayerSpec
from bottleneck_opt.timing.in_turn import Patience
from bottleneck_opt.timing.layer_times import LayerTimes
from bottleneck_opt.timing.records import Records
from bottleneck_opt.timing.setting import Timing
from bottleneck_opt.timing.targets import Place

CPU = Place(torch.device("cpu"), torch.float32, channels_last=False)
ONE = Timing()


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> LayerSpec:
    pad = kernel // 2
    return LayerSpec("c", "Conv2d", inputs, outputs, (kernel, kernel), (1, 1), (pad, pad), (1, 1), groups)


class Pretend(LayerTimes):
    """Times that are the multiply-adds, with whole vectors of channels, and 7 for each layer."""

    asked: list[tuple[LayerSpec, ...]]

    def _time(
        self, chains: Sequence[Sequence[LayerSpec]], shape: Sequence[int], timing: Timing, patience: Patience
    ) -> list[int]:
        self.__dict__.setdefault("asked", []).extend(map(tuple, chains))
        return [self._pretend(chain, shape) for chain in chains]

    def _pretend(self, chain: Sequence[LayerSpec], shape: Sequence[int]) -> int:
        whole = [s.named("", in_channels=self._up(s.in_channels), out_channels=self._up(s.out_channels)) for s in chain]
        return sum(price_layers([each], [shape]).macs + 7 for each in (whole if chain[0].groups == 1 else chain))

    def _up(self, channels: int) -> int:
        return channels if channels <= self.width else -(-channels // self.width) * self.width


@pytest.fixture
def times() -> Pretend:
    return Pretend(CPU, Records(None), 16)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 48), (48, 48), (40, 20), (16, 64), (5, 7), (1, 1), (96, 200)])
def test_a_time_that_grows_with_both_widths_is_read_off_its_neighbours(
    times: Pretend, inputs: int, outputs: int
) -> None:
    shape = (2, inputs, 6, 6)
    layer = conv(inputs, outputs)
    assert times.predict([layer], [shape], ONE) == pytest.approx(times._pretend([layer], shape), rel=1e-6)


def test_few_layers_are_timed_for_many_ranks(times: Pretend) -> None:
    for rank in range(8, 128, 8):
        times.predict([conv(128, rank, 1), conv(rank, 128)], [(1, 128, 6, 6)], ONE)
    assert len(times.asked) <= 12


def test_layers_in_a_row_see_the_sizes_that_those_before_them_make(times: Pretend) -> None:
    narrow = LayerSpec("c", "Conv2d", 16, 16, (3, 3), (2, 2), (1, 1), (1, 1))
    chain = [narrow, conv(16, 16)]
    expected = times.predict([narrow], [(1, 16, 8, 8)], ONE) + times.predict([conv(16, 16)], [(1, 16, 4, 4)], ONE)
    assert times.predict(chain, [(1, 16, 8, 8)], ONE) == expected


def test_what_layers_of_a_kind_really_took_corrects_all_of_that_kind(
    times: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 64, 6, 6)
    first, second, whole = [conv(64, 32, 1), conv(32, 64)], [conv(64, 16, 1), conv(16, 64)], [conv(64, 64)]
    before = [times.predict(each, [shape], ONE) for each in (first, second, whole)]
    monkeypatch.setattr(Pretend, "_pretend", lambda self, chain, shape: 2 * before[0] if len(chain) > 1 else before[2])
    assert times.compare(whole, first, [shape], ONE) == (before[2], 2 * before[0])
    times.learn()
    after = [times.predict(each, [shape], ONE) for each in (first, second, whole)]
    assert after == pytest.approx([2 * before[0], 2 * before[1], before[2]], abs=1)


def test_groups_are_timed_as_they_are(times: Pretend) -> None:
    times.predict([conv(24, 24, groups=3)], [(1, 24, 6, 6)], ONE)
    assert [(each.in_channels, each.groups) for (each,) in times.asked] == [(24, 3)]


def test_a_layer_is_timed_once_on_a_machine(tmp_path: Path) -> None:
    file = tmp_path / "times.sqlite"
    first, second = (Pretend(CPU, Records(file), 16) for _ in range(2))
    took = first.predict([conv(16, 16)], [(1, 16, 6, 6)], ONE)
    assert second.predict([conv(16, 16)], [(1, 16, 6, 6)], ONE) == took
    assert not hasattr(second, "asked")


@pytest.mark.parametrize(
    "other",
    [
        (CPU, Timing(threads=2)),
        (CPU, Timing(target="onnxruntime")),
        (Place(torch.device("cpu"), torch.float64, False), ONE),
        (Place(torch.device("cpu"), torch.float32, True), ONE),
    ],
)
def test_times_of_other_settings_are_kept_apart(tmp_path: Path, other: tuple[Place, Timing]) -> None:
    records = Records(tmp_path / "times.sqlite")
    Pretend(CPU, records, 16).predict([conv(16, 16)], [(1, 16, 6, 6)], ONE)
    place, timing = other
    again = Pretend(place, records, 16)
    again.predict([conv(16, 16)], [(1, 16, 6, 6)], timing)
    assert again.asked


SORTS = [
    conv(5, 6),
    conv(6, 6, groups=3),
    LayerSpec("c", "Conv2d", 4, 6, (3, 3), (2, 1), "valid", (1, 1), padding_mode="zeros"),
    LayerSpec("c", "Conv1d", 4, 6, (3,), (2,), (1,), (1,)),
    LayerSpec("c", "Conv3d", 4, 6, (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    LayerSpec("c", "ConvTranspose2d", 4, 6, (4, 4), (2, 2), (1, 1), (1, 1), output_padding=(0, 0)),
    LayerSpec("c", "Linear", 4, 6),
]


@pytest.mark.parametrize("target", ["eager", "onnxruntime"])
@pytest.mark.parametrize("layer", SORTS, ids=lambda each: f"{each.kind}-{each.groups}")
def test_layers_of_every_kind_can_really_be_timed(layer: LayerSpec, target: str) -> None:
    size = {"Linear": (3, 4)}.get(layer.kind, (2, layer.in_channels, *(7 for _ in layer.kernel)))
    timing = Timing(target=target)
    times = LayerTimes(CPU, Records(None), 16)
    assert times.predict([layer], [size], timing) > 0
    assert min(times.compare([layer], [layer], [size], timing)) > 0
