"""Detectors in the manner of the YOLO family: C3 and C2f blocks, SPPF, a pyramid, anchors cached at the first call."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tests.zoo.entries import Entry, noise_of


def entries() -> Iterator[Entry]:
    """Two generations."""
    yield Entry("yolo", "c3_anchors", lambda: Detector(C3, AnchorHead), noise_of(1, 3, 64, 64))
    yield Entry("yolo", "c2f_anchor_free", lambda: Detector(C2f, AnchorFreeHead), noise_of(1, 3, 64, 64))


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    default_act = nn.SiLU()

    def __init__(self, i: int, o: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(o)
        self.act = self.default_act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class Bottleneck(nn.Module):
    def __init__(self, width: int, first: int = 1) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width, first), Conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.cv2(self.cv1(x))
        return out


class C3(nn.Module):
    """Three convolutions around bottlenecks on half of the channels."""

    def __init__(self, i: int, o: int, n: int = 1) -> None:
        super().__init__()
        self.cv1, self.cv2, self.cv3 = Conv(i, o // 2), Conv(i, o // 2), Conv(o, o)
        self.m = nn.Sequential(*(Bottleneck(o // 2) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return out


class C2f(nn.Module):
    """Every bottleneck's output is kept."""

    def __init__(self, i: int, o: int, n: int = 1) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(i, o), Conv((2 + n) * (o // 2), o)
        self.m = nn.ModuleList(Bottleneck(o // 2, 3) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.m)
        out: Tensor = self.cv2(torch.cat(parts, 1))
        return out


class Pool(nn.Module):
    """Spatial pyramid pooling with one pooling layer called three times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(width, width // 2), Conv(2 * width, width)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        parts.extend(self.m(parts[-1]) for _ in range(3))
        out: Tensor = self.cv2(torch.cat(parts, 1))
        return out


class Concat(nn.Module):
    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, 1)


class AnchorHead(nn.Module):
    """Boxes from anchors; the grids are made at the first call and kept."""

    def __init__(self, widths: tuple[int, ...], classes: int = 4, anchors: int = 3) -> None:
        super().__init__()
        self.no, self.na = classes + 5, anchors
        self.grid = [torch.empty(0) for _ in widths]
        self.m = nn.ModuleList(nn.Conv2d(width, self.no * anchors, 1) for width in widths)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        decoded = []
        for i, layer in enumerate(self.m):
            x[i] = layer(x[i])
            b, _, h, w = x[i].shape
            x[i] = x[i].view(b, self.na, self.no, h, w).permute(0, 1, 3, 4, 2).contiguous()
            if self.grid[i].shape[2:4] != x[i].shape[2:4]:
                rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
                self.grid[i] = torch.stack((columns, rows), 2).expand(1, self.na, h, w, 2).to(x[i])
            xy, wh, rest = x[i].sigmoid().split((2, 2, self.no - 4), 4)
            box = torch.cat(((xy * 2 + self.grid[i].to(xy)) * 8 * 2**i, (wh * 2) ** 2, rest), 4)
            decoded.append(box.view(b, -1, self.no))
        return torch.cat(decoded, 1), x


class AnchorFreeHead(nn.Module):
    """Distances as distributions, which a fixed convolution turns into numbers."""

    bins = 8

    def __init__(self, widths: tuple[int, ...], classes: int = 4) -> None:
        super().__init__()
        self.cv2 = nn.ModuleList(nn.Sequential(Conv(w, 16, 3), nn.Conv2d(16, 4 * self.bins, 1)) for w in widths)
        self.cv3 = nn.ModuleList(nn.Sequential(Conv(w, 16, 3), nn.Conv2d(16, classes, 1)) for w in widths)
        self.expected = nn.Conv2d(self.bins, 1, 1, bias=False)
        self.expected.weight.data[:] = torch.arange(self.bins, dtype=torch.float32).view(1, -1, 1, 1)

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        boxes = torch.cat([branch(y).flatten(2) for branch, y in zip(self.cv2, x, strict=True)], 2)
        scores = torch.cat([branch(y).flatten(2) for branch, y in zip(self.cv3, x, strict=True)], 2)
        b, _, anchors = boxes.shape
        bins = boxes.view(b, 4, self.bins, anchors).transpose(2, 1).softmax(1)
        return {"boxes": self.expected(bins).view(b, 4, anchors), "scores": scores.sigmoid()}


class Detector(nn.Module):
    """A backbone, a pyramid up and down, a head; the layers are one list with the indices each reads from."""

    def __init__(self, block: type[nn.Module], head: type[nn.Module], width: int = 16) -> None:
        super().__init__()
        w = width
        self.model = nn.ModuleList([
            Conv(3, w, 3, 2), Conv(w, 2 * w, 3, 2), block(2 * w, 2 * w), Conv(2 * w, 4 * w, 3, 2), Pool(4 * w),
            nn.Upsample(scale_factor=2), Concat(), block(6 * w, 2 * w), Conv(2 * w, 2 * w, 3, 2), Concat(),
            block(6 * w, 4 * w), head((2 * w, 4 * w)),
        ])  # fmt: skip
        self.sources: dict[int, tuple[int, ...]] = {6: (-1, 2), 9: (-1, 4), 11: (7, 10)}

    def forward(self, x: Tensor) -> object:
        kept: list[Tensor] = []
        out: Tensor = x
        for index, layer in enumerate(self.model):
            sources = self.sources.get(index)
            out = layer(out if sources is None else [kept[source] for source in sources])
            kept.append(out)
        return out
