"""Kinds of networks that no package of the zoo has: on sequences, generators, loops over convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo.entries import Entry, noise, noise_of


def entries() -> Iterator[Entry]:
    """One line a network."""
    yield Entry("networks", "tcn", TemporalNet, noise_of(2, 8, 64))
    yield Entry("networks", "wavenet", WaveNet, noise_of(1, 1, 128))
    yield Entry("networks", "audio_unet", AudioUNet, noise_of(1, 2, 128))
    yield Entry("networks", "gan_generator", generator, noise_of(2, 16, 1, 1))
    yield Entry("networks", "gan_discriminator", discriminator, noise_of(2, 3, 32, 32))
    yield Entry("networks", "convgru_flow", FlowLoop, lambda model: (noise(1, 3, 32, 32), noise(1, 3, 32, 32).flip(3)))
    yield Entry("networks", "convlstm", ConvLstm, noise_of(1, 4, 3, 16, 16))
    yield Entry("networks", "crnn", Crnn, noise_of(1, 1, 32, 64))
    yield Entry("networks", "transformer_encoder", encoder, noise_of(2, 6, 32))
    yield Entry("networks", "super_resolution", super_resolution, noise_of(1, 3, 16, 16))
    yield Entry("networks", "autoencoder3d", volume_autoencoder, noise_of(1, 1, 16, 16, 16))
    yield Entry("networks", "early_exit", EarlyExit, noise_of(1, 3, 16, 16))
    yield Entry("networks", "adaptive_steps", AdaptiveSteps, noise_of(1, 8, 16, 16))
    yield Entry("networks", "mixture_of_experts", Experts, noise_of(4, 8, 8, 8))


class Causal(nn.Module):
    """A dilated 1d convolution that looks back only, weight-normalised, with a shortcut."""

    def __init__(self, i: int, o: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.conv1 = weight_norm(nn.Conv1d(i, o, 3, padding=self.pad, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(o, o, 3, padding=self.pad, dilation=dilation))
        self.down = nn.Conv1d(i, o, 1) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv1(x)[..., : -self.pad])
        y = torch.relu(self.conv2(y)[..., : -self.pad])
        return torch.relu(y + (x if self.down is None else self.down(x)))


class TemporalNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Causal(8, 16, 1), Causal(16, 16, 2), Causal(16, 24, 4))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(x)[:, :, -1])
        return out


class WaveNet(nn.Module):
    """Gated dilated convolutions with skips."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(nn.Conv1d(width, 2 * width, 2, dilation=2**n) for n in range(4))
        self.skips = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(4))
        self.end = nn.Conv1d(width, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        total = torch.zeros_like(x)
        for n, (gate, skip) in enumerate(zip(self.gates, self.skips, strict=True)):
            a, b = gate(F.pad(x, (2**n, 0))).chunk(2, 1)
            y = a.tanh() * b.sigmoid()
            total = total + skip(y)
            x = x + y
        out: Tensor = self.end(torch.relu(total))
        return out


class AudioUNet(nn.Module):
    """Strided 1d convolutions down, transposed ones up, an LSTM between."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv1d(2, 16, 8, 4, 2), nn.Conv1d(16, 32, 8, 4, 2)])
        self.lstm = nn.LSTM(32, 16, batch_first=True, bidirectional=True)
        self.up = nn.ModuleList([nn.ConvTranspose1d(32, 16, 8, 4, 2), nn.ConvTranspose1d(16, 2, 8, 4, 2)])

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.down:
            x = F.gelu(layer(x))
            kept.append(x)
        x = self.lstm(x.transpose(1, 2))[0].transpose(1, 2)
        for layer in self.up:
            x = layer(x + kept.pop())
        return x


def generator() -> nn.Module:
    """Noise to 32 x 32 pictures by transposed convolutions, one with groups, one with output padding."""

    def up(i: int, o: int, *shape: Any, **options: Any) -> list[nn.Module]:
        return [
            nn.ConvTranspose2d(i, o, *shape, **{"bias": False, **options}),
            nn.BatchNorm2d(o),
            nn.ReLU(inplace=True),
        ]

    return nn.Sequential(
        *up(16, 48, 4, 1, 0), *up(48, 32, 4, 2, 1), *up(32, 24, 3, 2, 1, output_padding=1),
        *up(24, 16, 3, 1, 1, groups=2), nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def discriminator() -> nn.Module:
    """Spectral norm on every convolution."""
    normed = torch.nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        normed(nn.Conv2d(3, 16, 4, 2, 1)), nn.LeakyReLU(0.2), normed(nn.Conv2d(16, 32, 4, 2, 1)), nn.LeakyReLU(0.2),
        nn.Flatten(), normed(nn.Linear(2048, 1)),
    )  # fmt: skip


class FlowLoop(nn.Module):
    """Optical flow refined in a loop by one recurrent convolution, as in RAFT."""

    def __init__(self, width: int = 16, steps: int = 4) -> None:
        super().__init__()
        self.steps = steps
        self.features = nn.Sequential(nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1))
        self.z, self.r, self.q = (nn.Conv2d(2 * width + 2, width, 3, padding=1) for _ in range(3))
        self.head = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        a, b = self.features(torch.cat((first, second))).chunk(2)
        flow, state, flows = a.new_zeros(len(a), 2, *a.shape[2:]), torch.tanh(a), []
        rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=a.dtype) for n in a.shape[2:]), indexing="ij")
        for _ in range(self.steps):
            grid = torch.stack((columns, rows), 2)[None] + 0.1 * flow.tanh().permute(0, 2, 3, 1)
            moved = F.grid_sample(b, grid, align_corners=True)
            x = torch.cat((a * moved, flow), 1)
            z, r = (layer(torch.cat((state, x), 1)).sigmoid() for layer in (self.z, self.r))
            state = (1 - z) * state + z * self.q(torch.cat((r * state, x), 1)).tanh()
            flow = flow + self.head(state)
            flows.append(F.interpolate(flow, scale_factor=4, mode="bilinear"))
        return flows


class ConvLstm(nn.Module):
    """A video, frame by frame."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.gates, self.head = nn.Conv2d(3 + width, 4 * width, 3, padding=1), nn.Conv2d(width, 3, 1)

    def forward(self, video: Tensor) -> Tensor:
        hidden = cell = video.new_zeros(len(video), 12, *video.shape[3:])
        for frame in video.unbind(1):
            i, f, o, g = self.gates(torch.cat((frame, hidden), 1)).chunk(4, 1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
        out: Tensor = self.head(hidden)
        return out


class Crnn(nn.Module):
    """Convolutions, then a GRU over columns."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3, padding="same"), nn.ReLU(),
            nn.AdaptiveAvgPool2d((1, 16)),
        )  # fmt: skip
        self.gru, self.head = nn.GRU(16, 12, batch_first=True), nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(self.features(x)[:, :, 0].transpose(1, 2))[0])
        return out


def encoder() -> nn.Module:
    """Torch's own transformer, whose fused path takes the weights itself."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)


def super_resolution() -> nn.Module:
    """Reflected borders and a pixel shuffle."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, padding=2, padding_mode="reflect"), nn.PReLU(16),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(16, 12, 3, padding=1, padding_mode="replicate"), nn.PixelShuffle(2),
    )  # fmt: skip


def volume_autoencoder() -> nn.Module:
    """3d down and up again."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, 2, 1), nn.InstanceNorm3d(8), nn.ReLU(), nn.Conv3d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose3d(16, 8, 2, 2), nn.ReLU(), nn.ConvTranspose3d(8, 1, 3, 2, 1, output_padding=1),
    )  # fmt: skip


class EarlyExit(nn.Module):
    """Stops early where it is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)]
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.relu(block(x))
            scores: Tensor = self.head(x.mean((2, 3)))
            if scores.softmax(1).max() > 0.6:
                break
        return scores


class AdaptiveSteps(nn.Module):
    """As many steps as the input asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(1 + int(x.abs().mean() * 3)):
            x = torch.tanh(self.step(x))
        return x


class Experts(nn.Module):
    """Every example goes through the convolution that a gate picks."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        picked = self.gate(x.mean((2, 3))).argmax(1)
        for index, expert in enumerate(self.experts):
            mine = (picked == index).nonzero()[:, 0]
            if len(mine):
                out[mine] = expert(x[mine])
        return out
