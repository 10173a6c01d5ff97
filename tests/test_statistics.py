from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bottleneck_opt.statistics import LayerStatistics, OutputScale, Statistics, empty_moments
from tests.layer_samples import moments
from tests.networks import noise


def layer_statistics(seed: int, samples: int = 7) -> LayerStatistics:
    inputs, outputs = moments(noise(samples, 4, seed=seed)), moments(noise(samples, 3, seed=seed + 1))
    return LayerStatistics(inputs, outputs, noise(3, 3, seed=seed + 2), samples)


def assert_same(one: LayerStatistics, other: LayerStatistics) -> None:
    for name in ("inputs", "outputs"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.count == theirs.count
        assert mine.squares == pytest.approx(theirs.squares)
        torch.testing.assert_close(mine.total, theirs.total)
        torch.testing.assert_close(mine.outer, theirs.outer)
    assert one.probes == other.probes
    torch.testing.assert_close(one.curvature, other.curvature)


def test_covariance_is_centred() -> None:
    samples = noise(50, 4) + 5
    found = moments(samples)
    torch.testing.assert_close(found.mean, samples.mean(0))
    torch.testing.assert_close(found.covariance(), torch.cov(samples.T, correction=0))


def test_variance_is_the_mean_of_the_covariances_diagonal() -> None:
    found = moments(noise(50, 4) + 5)
    assert found.variance == pytest.approx(float(found.covariance().diagonal().mean()))


@given(st.integers(0, 12))
@settings(deadline=None, max_examples=13, derandomize=True)
def test_moments_of_two_parts_merged_are_those_of_the_whole(cut: int) -> None:
    samples = noise(12, 4)
    whole, merged = moments(samples), moments(samples[:cut]).merge(moments(samples[cut:]))
    assert merged.count == whole.count
    torch.testing.assert_close(merged.covariance(), whole.covariance())
    assert merged.variance == pytest.approx(whole.variance)


def test_merging_is_independent_of_the_order() -> None:
    one, two, three = layer_statistics(0), layer_statistics(10), layer_statistics(20)
    assert_same(one.merge(two).merge(three), three.merge(one.merge(two)))


def test_merging_leaves_both_parts_alone() -> None:
    one, two = moments(noise(3, 4)), moments(noise(3, 4, seed=1))
    before = one.total.clone(), two.total.clone()
    one.merge(two)
    torch.testing.assert_close((one.total, two.total), before)


def test_no_sample_has_zero_moments() -> None:
    empty = empty_moments(3, outer=True)
    assert empty.count == 0
    assert empty.variance == 0
    assert float(empty.covariance().abs().max()) == 0


def test_covariance_that_was_not_collected() -> None:
    without = empty_moments(3, outer=False)
    assert moments(noise(3, 3)).merge(without).outer is None
    with pytest.raises(ValueError, match="not collected"):
        without.covariance()


def test_curvature_is_that_of_an_example() -> None:
    found = replace(layer_statistics(0), probes=4)
    torch.testing.assert_close(found.mean_curvature(), found.curvature / 4)


def test_curvature_of_no_probe_is_zero() -> None:
    found = replace(layer_statistics(0), curvature=torch.zeros(3, 3), probes=0)
    assert float(found.mean_curvature().abs().max()) == 0


def test_an_output_changed_by_its_deviation_everywhere_changes_by_one() -> None:
    scales = (OutputScale(2.0, 10, 2), OutputScale(0.1, 4, 2))
    change = sum(scale.entries * (scale.deviation * scale.weight) ** 2 for scale in scales)
    assert change == pytest.approx(1)


def test_a_constant_output_counts_for_nothing() -> None:
    assert OutputScale(0.0, 10, 1).weight == 0


def test_statistics_merge_layer_by_layer() -> None:
    scales = (OutputScale(1.0, 1, 1),)
    one = Statistics({"a": layer_statistics(0), "b": layer_statistics(1)}, 5, scales)
    two = Statistics({"a": layer_statistics(2), "b": layer_statistics(3)}, 6, scales)
    merged = one.merge(two)
    assert merged.examples == 11
    assert_same(merged.layers["b"], one.layers["b"].merge(two.layers["b"]))


def test_statistics_of_other_layers_or_scales_do_not_merge() -> None:
    one = Statistics({"a": layer_statistics(0)}, 5, (OutputScale(1.0, 1, 1),))
    for other in (replace(one, layers={"b": layer_statistics(0)}), replace(one, scales=())):
        with pytest.raises(ValueError, match="same layers and output scales"):
            one.merge(other)


@pytest.mark.parametrize("broken", ["total", "squares", "outer"])
def test_sums_that_overflow_are_seen(broken: str) -> None:
    found = layer_statistics(0)
    assert found.is_finite
    spoilt = getattr(found.inputs, broken) * float("inf")
    for name in ("inputs", "outputs"):
        moments_of = getattr(found, name)
        assert not replace(found, **{name: replace(moments_of, **{broken: spoilt})}).is_finite


def test_a_curvature_may_be_missing_but_not_overflow() -> None:
    found = layer_statistics(0)
    assert replace(found, curvature=torch.full((3, 3), float("nan"))).is_finite
    assert not replace(found, curvature=found.curvature.abs() * float("inf")).is_finite


def test_sums_without_products_may_be_finite() -> None:
    assert empty_moments(3, outer=False).is_finite
