"""A small ResNet on scikit-learn's bundled handwritten digits: real images, no download, trained in under a minute."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bottleneck_opt.errors import NotAvailableError

TEST_DIGITS = 797
PIXELS = 16
WIDTHS = (32, 64, 128)


@dataclass(frozen=True)
class Digits:
    """The 1,797 digits, enlarged to 16 x 16 and scaled to zero mean and unit variance.

    Attributes:
        train_x, test_x: Images ``(n, 1, 16, 16)``.
        train_y, test_y: Classes ``(n,)``.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, h, w)`` to ``(batch, outputs, h / stride, w / stride)``."""
        y: Tensor = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        z: Tensor = self.relu(y + self.shortcut(x))
        return z


class DigitsResNet(nn.Module):
    """ResNet with three stages of two blocks, about 27 million multiply-adds an image ``(batch, 1, 16, 16)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU())
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        width = WIDTHS[0]
        for number, outputs in enumerate(WIDTHS, 1):
            stages[f"stage{number}"] = nn.Sequential(
                Block(width, outputs, 1 if number == 1 else 2), Block(outputs, outputs, 1)
            )
            width = outputs
        self.stages = nn.Sequential(stages)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, 10)`` of images ``(batch, 1, 16, 16)``."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits


def load_digits(seed: int = 0) -> Digits:
    """The digits, split at random into 1,000 for training and 797 for testing.

    Raises:
        NotAvailableError: scikit-learn, which holds the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits as read_digits  # noqa: PLC0415  (only the demo needs it)
    except ImportError as error:
        raise NotAvailableError(
            "the demo's images come with scikit-learn, which is not installed. Run: pip install 'bottleneck-opt[demo]'"
        ) from error
    bunch = read_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None]
    images = F.interpolate(images, size=(PIXELS, PIXELS), mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, classes = images[order], torch.tensor(bunch.target)[order]
    cut = len(images) - TEST_DIGITS
    images = (images - images[:cut].mean()) / images[:cut].std()
    return Digits(images[:cut], classes[:cut], images[cut:], classes[cut:])


def train(
    model: nn.Module, digits: Digits, *, epochs: int = 16, seed: int = 0, advance: Callable[[], None] = lambda: None
) -> None:
    """Train a classifier in place with SGD, one cycle of the learning rate and random shifts of up to two pixels."""
    generator = torch.Generator().manual_seed(seed)
    batch = 50
    steps = -(-len(digits.train_x) // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=epochs * steps)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(digits.train_x), generator=generator).split(batch):
            images = _shift(digits.train_x[index], generator)
            loss = F.cross_entropy(model(images), digits.train_y[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        advance()
    model.eval()


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by up to two pixels, each in its own direction."""
    background = float(images.min())
    padded = F.pad(images, (2, 2, 2, 2), value=background)
    offsets = torch.randint(0, 5, (len(images), 2), generator=generator)
    return torch.stack(
        [image[:, y : y + PIXELS, x : x + PIXELS] for image, (y, x) in zip(padded, offsets.tolist(), strict=True)]
    )


def accuracy(model: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Share of images whose top class is right; the model is put in eval mode and back."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(200), classes.split(200), strict=True)
        )
    model.train(was_training)
    return right / len(classes)
