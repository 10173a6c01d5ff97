from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import nn

from bottleneck_opt.recovery import distil
from tests.networks import conv, seeded
from tests.recovery.samples import QUICK, X, data, scale, state


def shifted(pair: tuple[nn.Module, nn.Module]) -> tuple[nn.Module, nn.BatchNorm2d]:
    """A copy of the teacher in which one norm has wrong statistics."""
    student = copy.deepcopy(pair[0])
    norm = student.get_submodule("blocks.0.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    norm.running_mean += 3
    return student, norm


def statistics_of_data(pair: tuple[nn.Module, nn.Module]) -> nn.Module:
    """A teacher whose norms have the statistics of the data."""
    teacher = copy.deepcopy(pair[0]).train()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    teacher.get_submodule("dropout").eval()
    with torch.no_grad():
        teacher(X)
    return teacher.eval()


def test_wrong_statistics_are_measured_again(pair: tuple[nn.Module, nn.Module]) -> None:
    teacher = statistics_of_data(pair)
    student, norm = shifted((teacher, pair[1]))
    counted = copy.deepcopy(norm.num_batches_tracked)
    still = replace(QUICK, steps=1, learning_rate=1e-9)
    found = distil(teacher, student, data(), still)
    assert found.norms == "kept"
    assert found.after < 0.2 * found.before
    assert found.accepted
    assert norm.momentum is None
    assert norm.num_batches_tracked == counted
    assert not norm.training


def test_right_statistics_stay(pair: tuple[nn.Module, nn.Module]) -> None:
    teacher, student = pair
    before = {name: each.clone() for name, each in student.named_buffers()}
    assert distil(teacher, student, data(), replace(QUICK, steps=1)).norms == "no help"
    assert all(torch.equal(each, before[name]) for name, each in student.named_buffers())


def test_statistics_that_cannot_be_measured_stay_with_the_reason() -> None:
    net = seeded(lambda: nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4)), dtype=torch.float32)
    student = copy.deepcopy(net)
    scale(student[0], 1.5)
    before = state(student)
    found = distil(net, student, data(X[:2]), replace(QUICK, batch=1, steps=1, learning_rate=1e-9))
    assert found.norms.startswith("not possible: Expected more than 1 value per channel")
    assert torch.equal(student.state_dict()["2.running_var"], before["2.running_var"])
