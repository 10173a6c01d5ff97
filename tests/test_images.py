from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bottleneck_opt import calibrate, optimize, recover
from bottleneck_opt.errors import FileError, InputError
from bottleneck_opt.images import IMAGENET, Pictures, Preparation, find_preparation, read_images
from tests.networks import classifier, seeded

pillow = pytest.importorskip("PIL.Image")
PLAIN = Preparation((), (), "not normalised")


def write_image(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.fromarray(np.asarray(values, dtype=np.uint8)).save(path)


def grey(value: int, *, height: int = 8, width: int = 8) -> Any:
    return np.full((height, width, 3), value)


def read(
    folder: Path, shape: tuple[int, ...] = (3, 8, 8), preparation: Preparation = PLAIN, limit: int = 9
) -> Pictures:
    return read_images(folder, shape, preparation, limit=limit)


def test_images_are_read_from_all_folders_below_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name, value in (("b/2.png", 102), ("a/1.PNG", 51), ("c.bmp", 255)):
        write_image(tmp_path / name, grey(value))
    (tmp_path / "labels.txt").touch()
    found = read(tmp_path)
    assert found.inputs.shape == (3, 3, 8, 8)
    assert found.inputs[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.4, 1.0])


def test_a_limit_takes_images_from_every_folder(tmp_path: Path) -> None:
    for index in range(8):
        write_image(tmp_path / "ab"[index // 4] / f"{index}.png", grey(30 * index))
    found = read(tmp_path, limit=4)
    assert (255 * found.inputs[:, 0, 0, 0]).round().tolist() == [0, 60, 120, 180]
    assert "4 of the 8 images" in found.note


def test_the_middle_is_cut_out_and_nothing_is_stretched(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3))
    wide[:, 8:16] = 255
    write_image(tmp_path / "wide.png", wide)
    write_image(tmp_path / "tall.png", wide.transpose(1, 0, 2))
    assert torch.equal(read(tmp_path).inputs, torch.ones(2, 3, 8, 8))


def test_a_crop_leaves_a_border_away(tmp_path: Path) -> None:
    framed = np.zeros((16, 16, 3))
    framed[4:12, 4:12] = 255
    write_image(tmp_path / "framed.png", framed)
    found = read(tmp_path, preparation=Preparation((), (), "", crop=0.5, filter="nearest"))
    assert torch.equal(found.inputs, torch.ones(1, 3, 8, 8))
    assert "shorter side resized to 16, the middle 8x8 cut out" in found.note


def test_images_are_normalised_channel_by_channel(tmp_path: Path) -> None:
    write_image(tmp_path / "one.png", grey(255))
    found = read(tmp_path, preparation=Preparation((0.0, 0.5, 1.0), (1.0, 0.25, 2.0), ""))
    assert found.inputs[0, :, 0, 0].tolist() == [1, 2, 0]


def test_a_model_of_one_channel_gets_grey_images(tmp_path: Path) -> None:
    write_image(tmp_path / "colour.png", grey(51))
    assert read(tmp_path, (1, 4, 4)).inputs.numpy() == pytest.approx(np.full((1, 1, 4, 4), 0.2))


CONFIG = {"mean": (0.5, 0.5, 0.5), "std": (0.1, 0.1, 0.1), "crop_pct": 0.9, "interpolation": "bicubic"}
SEGMENTS = SimpleNamespace(mean=[0.3] * 3, std=[0.2] * 3, resize_size=[520])
CLASSIFIES = SimpleNamespace(mean=[0.4] * 3, std=[0.2] * 3, crop_size=[224], resize_size=[256])


@pytest.mark.parametrize(
    ("hints", "transforms", "channels", "mean", "crop", "source"),
    [
        ({"pretrained_cfg": CONFIG}, CLASSIFIES, 3, (0.5,) * 3, 0.9, "model's pretrained_cfg"),
        ({"pretrained_cfg": SimpleNamespace(**CONFIG)}, None, 3, (0.5,) * 3, 0.9, "model's pretrained_cfg"),
        ({}, SEGMENTS, 3, (0.3,) * 3, 1.0, "torchvision's weights"),
        ({}, CLASSIFIES, 3, (0.4,) * 3, 0.875, "torchvision's weights"),
        ({}, SimpleNamespace(), 3, (), 1.0, "detectors normalise themselves"),
        ({}, None, 3, IMAGENET[0], 1.0, "ImageNet, the model names none"),
        ({"default_cfg": CONFIG}, None, 1, (), 1.0, "values from 0 to 1"),
    ],
)
def test_the_models_own_hints_come_first(
    hints: dict[str, Any], transforms: Any, channels: int, mean: tuple[float, ...], crop: float, source: str
) -> None:
    model = nn.Identity()
    vars(model).update(hints)
    found = find_preparation(model, channels, transforms)
    assert (found.mean, found.crop) == (mean, crop)
    assert source in found.source


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for index in range(6):
        values = np.random.default_rng(index).integers(0, 255, (10, 9, 3))
        write_image(tmp_path / "album" / f"{index}.png", values)
    return tmp_path / "album"


@pytest.mark.parametrize("kind", [str, Path])
def test_python_takes_a_folder_as_the_command_line_does(album: Path, kind: Any) -> None:
    net = seeded(classifier, dtype=torch.float32)
    net.pretrained_cfg = CONFIG  # type: ignore[assignment]
    options: dict[str, Any] = {"budget": 0.6, "progress": False}
    result = optimize(net, torch.zeros(1, 3, 8, 8), calibration=kind(album), **options)
    found = read(album, preparation=find_preparation(net, 3))
    assert result.plan.steps == optimize(net, torch.zeros(1, 3, 8, 8), calibration=found, **options).plan.steps != ()
    assert any("images in" in note and "mean and std of the model's pretrained_cfg" in note for note in result.notes)
    again = recover(result, kind(album), teacher=net, recovery=2, progress=False)
    assert again.recovery is not None
    assert (again.recovery.trained_on, again.recovery.held_out) == (6, 6 + 66)  # and eleven mixes of each


def test_python_takes_a_file_of_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((7, 3, 8, 8), dtype=np.float32))
    net = seeded(classifier, dtype=torch.float32)
    origin = calibrate(net, calibration=tmp_path / "x.npy", progress=False).origin
    assert origin is not None
    assert origin.data == "7 unlabelled examples"
    with pytest.raises(FileError, match="no such file or folder"):
        optimize(net, calibration="nowhere", progress=False)


def test_a_folder_does_not_fit_a_call_of_several_tensors(album: Path) -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"one image tensor; inputs= is a tuple\. Pass an iterable of batches"):
        optimize(seeded(classifier), (x, x), calibration=album, progress=False)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"holds no image; expected \.jpg, .* Name the folder"):
        read(tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(FileError, match=r"bad\.png: cannot be used as an image: .* take it out of the folder"):
        read(tmp_path)


def test_an_image_of_16_bits_is_not_cut_to_8(tmp_path: Path) -> None:
    pillow.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(FileError, match=r"deep\.png: .* more than 8 bits a channel"):
        read(tmp_path)


@pytest.mark.parametrize("shape", [(16, 8, 8), (3, 8), (10,)])
def test_an_input_that_is_no_image_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="expected 1 or 3 channels, height and width"):
        read(tmp_path, shape)


def test_without_pillow_the_user_is_told_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "one.png", grey(0))
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(FileError, match="pip install pillow"):
        read(tmp_path)
