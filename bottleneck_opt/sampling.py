"""How much of the calibration data is looked at, and which random numbers decide where."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

OUTER_LIMIT = 8192
CURVATURE_POSITIONS = 1024
LEAST_POSITIONS = 256
PROBE_MACS = 2e11
MOST_PROBES = 8
MOST_KEPT_BYTES = 2**28


@dataclass(frozen=True)
class Sampling:
    """How much of the data to look at.

    Attributes:
        examples: Examples in the whole calibration set, over all parts of it that will be merged.
        probes: Random output directions an example.
        seed: Seed of positions and directions.
        first_example: Number of the first example of this part.
        together: Examples whose activations may be kept at once for a backward pass; None sets no limit.
    """

    examples: int
    probes: int
    seed: int
    first_example: int = 0
    together: int | None = None

    def positions(self, width: int, available: int) -> int:
        """Output positions to look at in each example: at least 256, about eight samples for each of ``width``."""
        return min(available, max(LEAST_POSITIONS, -(-8 * width // max(self.examples, 1))))

    def generator(self, purpose: str, example: int) -> torch.Generator:
        """Random numbers that depend on the seed, the purpose and the example, not on what ran before."""
        key = f"{self.seed}/{purpose}/{self.first_example + example}"
        return torch.Generator().manual_seed(zlib.crc32(key.encode()))


def choose_probes(examples: int, macs_per_example: float) -> int:
    """Eight probes an example, fewer where a forward pass is expensive: about 2e11 multiply-adds in all."""
    return int(max(1, min(MOST_PROBES, PROBE_MACS // max(examples * macs_per_example, 1))))


def choose_together(bytes_per_example: float) -> int:
    """Examples to keep the activations of at once: about a quarter of a gigabyte of them.

    Args:
        bytes_per_example: All activations of one example.
    """
    return int(max(1, MOST_KEPT_BYTES // max(bytes_per_example, 1)))
