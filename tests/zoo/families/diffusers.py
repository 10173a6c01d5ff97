"""Denoisers and autoencoders of diffusion models, in small configurations."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from tests import torchvision_models  # the package imports torchvision where that is installed
from tests.zoo.entries import Entry, noise

_diffusers = torchvision_models.import_after_torchvision("diffusers")
_PLAIN_DOWN = ("DownEncoderBlock2D", "DownEncoderBlock2D")
_PLAIN_UP = ("UpDecoderBlock2D", "UpDecoderBlock2D")
_CONDITIONAL = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 32, "attention_head_dim": 8,
}  # fmt: skip
_AUTOENCODER = {
    "block_out_channels": (32, 64), "down_block_types": _PLAIN_DOWN, "up_block_types": _PLAIN_UP, "latent_channels": 4,
}  # fmt: skip


def entries() -> Iterator[Entry]:
    """One line a network."""
    time = torch.tensor([10])
    text = {"timestep": time, "encoder_hidden_states": noise(1, 7, 32)}
    yield _entry("unet2d", {"sample": noise(1, 3, 32, 32), "timestep": time}, "UNet2DModel", sample_size=32,
                 block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=8,
                 down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                 up_block_types=("AttnUpBlock2D", "UpBlock2D"))  # fmt: skip
    yield _entry("unet2d_condition", {"sample": noise(1, 4, 16, 16), **text}, "UNet2DConditionModel", sample_size=16,
                 up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **_CONDITIONAL)  # fmt: skip
    yield _entry("unet1d", {"sample": noise(1, 14, 32), "timestep": time}, "UNet1DModel", sample_size=32,
                 in_channels=14, out_channels=14, block_out_channels=(32, 64), time_embedding_type="positional",
                 down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"), up_block_types=("UpResnetBlock1D",),
                 mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock", layers_per_block=1,
                 downsample_each_block=False, use_timestep_embedding=True, act_fn="mish")  # fmt: skip
    yield _entry("unet3d_condition", {"sample": noise(1, 4, 2, 16, 16), **text}, "UNet3DConditionModel", sample_size=16,
                 down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), layers_per_block=1, attention_head_dim=8,
                 up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), block_out_channels=(32, 64),
                 cross_attention_dim=32)  # fmt: skip
    yield _entry("controlnet", {"sample": noise(1, 4, 16, 16), "controlnet_cond": noise(1, 3, 32, 32), **text},
                 "ControlNetModel", conditioning_embedding_out_channels=(16, 32), **_CONDITIONAL)  # fmt: skip
    yield _entry("autoencoder_kl", noise(1, 3, 32, 32), "AutoencoderKL", **_AUTOENCODER)
    yield _entry("autoencoder_kl_temporal", {"sample": noise(2, 3, 32, 32), "num_frames": 2},
                 "AutoencoderKLTemporalDecoder", block_out_channels=(32, 64), down_block_types=_PLAIN_DOWN)  # fmt: skip
    yield _entry("autoencoder_tiny", noise(1, 3, 32, 32), "AutoencoderTiny",
                 encoder_block_out_channels=(16, 16, 16, 16), decoder_block_out_channels=(16, 16, 16, 16))  # fmt: skip
    yield _entry("vq_model", noise(1, 3, 32, 32), "VQModel", block_out_channels=(32, 64), down_block_types=_PLAIN_DOWN,
                 up_block_types=_PLAIN_UP, latent_channels=3, num_vq_embeddings=16)  # fmt: skip
    yield _entry("autoencoder_kl_wan", noise(1, 3, 1, 32, 32), "AutoencoderKLWan", base_dim=8, z_dim=4,
                 dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True])  # fmt: skip
    yield _entry("autoencoder_kl_cogvideox", noise(1, 3, 1, 32, 32), "AutoencoderKLCogVideoX",
                 block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4)  # fmt: skip
    yield _entry("autoencoder_oobleck", noise(1, 2, 2048), "AutoencoderOobleck", encoder_hidden_size=12,
                 decoder_channels=12, decoder_input_channels=6, downsampling_ratios=[2, 4],
                 channel_multiples=[1, 2])  # fmt: skip
    yield _entry("autoencoder_dc", noise(1, 3, 32, 32), "AutoencoderDC", latent_channels=4, attention_head_dim=2,
                 encoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
                 decoder_block_types=("ResBlock", "EfficientViTBlock"), decoder_block_out_channels=(8, 8),
                 encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
                 encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1))  # fmt: skip


def _entry(model: str, inputs: Any, name: str, **options: Any) -> Entry:
    return Entry("diffusers", model, partial(_make, name, **options), lambda made: inputs)


def _make(name: str, **options: Any) -> Any:
    return getattr(_diffusers, name)(**options)
