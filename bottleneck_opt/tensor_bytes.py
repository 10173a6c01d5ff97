"""The bytes of a tensor's values, to be hashed."""

from __future__ import annotations

import torch
from torch import Tensor


def bytes_of(tensor: Tensor) -> memoryview:
    r"""The values in the order of the indices, without a copy where they lie like that in the CPU's memory.

    Example:
        >>> bytes(bytes_of(torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).T))
        b'\x01\x03\x02\x04'
    """
    whole = tensor.detach().cpu().contiguous()
    flat = whole.as_strided((whole.numel(),), (1,))  # a tensor of one value is contiguous with any stride
    return flat.view(torch.uint8).numpy().data
