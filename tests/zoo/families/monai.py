"""MONAI's medical networks, mostly on volumes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from tests import torchvision_models  # the package imports torchvision where that is installed
from tests.zoo.entries import Entry, noise, noise_of

_nets = torchvision_models.import_after_torchvision("monai.networks.nets")
_VOLUME = (1, 1, 32, 32, 32)
_SMALL_VOLUME = (1, 1, 16, 16, 16)  # for networks that keep their resolution: 3d convolutions in float64 are slow
_ONE_IN_TWO_OUT = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_PLANE = {**_ONE_IN_TWO_OUT, "spatial_dims": 2}


def entries() -> Iterator[Entry]:
    """One line a network."""
    unet = {**_ONE_IN_TWO_OUT, "channels": (8, 16, 32), "strides": (2, 2)}
    yield _on_volume("unet3d", "UNet", **unet, num_res_units=2)
    yield _on_volume("unet3d_plain", "UNet", **unet)
    yield _on_plane("unet2d", "UNet", **{**unet, "spatial_dims": 2})
    yield _on_volume("attention_unet", "AttentionUnet", **unet)
    yield _on_volume("segresnet", "SegResNet", init_filters=8, in_channels=1, out_channels=2)
    yield _on_volume("segresnet_vae", "SegResNetVAE", input_image_size=(32, 32, 32), init_filters=8, in_channels=1,
                     out_channels=2, vae_estimate_std=False)  # fmt: skip
    yield _on_volume("segresnet_ds", "SegResNetDS", init_filters=8, in_channels=1, out_channels=2)
    yield _on_volume("basic_unet", "BasicUNet", **_ONE_IN_TWO_OUT, features=(8, 8, 16, 32, 32, 8))
    yield _on_plane("basic_unet_plus_plus", "BasicUNetPlusPlus", **_PLANE, features=(8, 8, 16, 32, 32, 8))
    yield _on_volume("dynunet", "DynUNet", **_ONE_IN_TWO_OUT, kernel_size=[3, 3, 3], strides=[1, 2, 2],
                     upsample_kernel_size=[2, 2], filters=[8, 16, 32], deep_supervision=True,
                     deep_supr_num=1)  # fmt: skip
    yield _on_small_volume("vnet", "VNet", spatial_dims=3, in_channels=1, out_channels=2)
    yield _on_small_volume("highresnet", "HighResNet", **_ONE_IN_TWO_OUT)
    yield _on_volume("densenet121", "DenseNet121", **_ONE_IN_TWO_OUT)
    yield _on_volume("resnet10", "resnet10", spatial_dims=3, n_input_channels=1, num_classes=2)
    yield _on_volume("autoencoder", "AutoEncoder", **_ONE_IN_TWO_OUT, channels=(8, 16), strides=(2, 2))
    yield _on_plane("mednext", "MedNeXt", **_PLANE, init_filters=8)
    yield _on_volume("unetr", "UNETR", in_channels=1, out_channels=2, img_size=(32, 32, 32), feature_size=8,
                     hidden_size=96, mlp_dim=192, num_heads=4)  # fmt: skip
    yield Entry("monai", "swin_unetr2d", partial(_make, "SwinUNETR", in_channels=1, out_channels=2, feature_size=12,
                spatial_dims=2), noise_of(1, 1, 64, 64))  # fmt: skip
    yield _on_volume("vqvae", "VQVAE", **_ONE_IN_TWO_OUT, channels=(16, 32), num_res_channels=(16, 32),
                     num_res_layers=1, downsample_parameters=((2, 4, 1, 1), (2, 4, 1, 1)),
                     upsample_parameters=((2, 4, 1, 1, 0),) * 2,
                     num_embeddings=16, embedding_dim=16)  # fmt: skip
    yield Entry("monai", "voxelmorph_unet", partial(_make, "VoxelMorphUNet", spatial_dims=3, in_channels=2,
                unet_out_channels=8, channels=(8, 8, 8, 8, 8, 8), final_conv_channels=(8,)),
                noise_of(1, 2, 32, 32, 32))  # fmt: skip
    yield Entry("monai", "flexible_unet", partial(_make, "FlexibleUNet", in_channels=3, out_channels=2,
                backbone="efficientnet-b0"), noise_of(1, 3, 64, 64))  # fmt: skip
    yield Entry("monai", "diffusion_unet", partial(_make, "DiffusionModelUNet", spatial_dims=2, in_channels=1,
                out_channels=1, channels=(16, 32), attention_levels=(False, True), num_res_blocks=1,
                num_head_channels=16, norm_num_groups=8), lambda model: (noise(1, 1, 16, 16), noise(1)))  # fmt: skip


def _make(name: str, **options: Any) -> Any:
    return getattr(_nets, name)(**options)


def _on_volume(model: str, name: str, **options: Any) -> Entry:
    return Entry("monai", model, partial(_make, name, **options), noise_of(*_VOLUME))


def _on_small_volume(model: str, name: str, **options: Any) -> Entry:
    return Entry("monai", model, partial(_make, name, **options), noise_of(*_SMALL_VOLUME))


def _on_plane(model: str, name: str, **options: Any) -> Entry:
    return Entry("monai", model, partial(_make, name, **options), noise_of(1, 1, 64, 64))
