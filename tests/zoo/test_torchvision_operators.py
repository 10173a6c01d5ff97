"""The operators that stand in for those of torchvision's compiled extension."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.torchvision_models import align_regions, suppress_overlaps


def overlap(a: Tensor, b: Tensor) -> float:
    width, height = (min(float(a[2 + i]), float(b[2 + i])) - max(float(a[i]), float(b[i])) for i in (0, 1))
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_a_box_is_kept_unless_it_overlaps_a_better_one_that_is_kept(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * 10
    boxes = torch.cat((corners, corners + torch.rand(40, 2, generator=generator) * 6), 1)
    scores = torch.rand(40, generator=generator)
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    assert suppress_overlaps(boxes, scores, threshold).tolist() == kept


def test_no_box_is_no_box() -> None:
    assert suppress_overlaps(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


@pytest.mark.parametrize("samples", [1, 2, 0])
def test_a_region_of_a_ramp_is_the_ramp_at_the_middle_of_each_bin(samples: int) -> None:
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    picture = torch.stack((rows, columns))[None].double()
    region = torch.tensor([[0.0, 4.0, 2.0, 12.0, 8.0]], dtype=torch.float64)
    pooled = align_regions(picture, region, 1.0, 3, 4, samples, False)
    assert torch.allclose(pooled[0, 0], torch.tensor([3.0, 5.0, 7.0]).double()[:, None].expand(3, 4))
    assert torch.allclose(pooled[0, 1], torch.tensor([5.0, 7.0, 9.0, 11.0]).double().expand(3, 4))


def test_aligned_regions_are_half_a_pixel_lower() -> None:
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    region = torch.tensor([[0.0, 4.0, 4.0, 12.0, 12.0]])
    shifted = align_regions(ramp, region, 1.0, 2, 2, 2, True)
    assert torch.allclose(shifted, align_regions(ramp, region, 1.0, 2, 2, 2, False) - 0.5)


def test_regions_outside_the_picture_are_zero() -> None:
    region = torch.tensor([[0.0, 20.0, 20.0, 30.0, 30.0]])
    assert align_regions(torch.ones(1, 2, 8, 8), region, 1.0, 2, 2, 2, False).abs().sum() == 0
