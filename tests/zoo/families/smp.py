"""Segmentation models: every architecture on one encoder, and one architecture on every kind of encoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests import torchvision_models  # the package imports timm, which imports torchvision
from tests.zoo.entries import Entry, noise_of

_smp = torchvision_models.import_after_torchvision("segmentation_models_pytorch")
_ARCHITECTURES = (
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "upernet",
    "segformer",
)  # fmt: skip
_ENCODERS = (
    "resnext50_32x4d", "dpn68", "vgg11_bn", "se_resnet50", "densenet121", "inceptionresnetv2", "inceptionv4",
    "efficientnet-b0", "mobilenet_v2", "xception", "timm-efficientnet-b0", "timm-skresnet18", "mit_b0", "mobileone_s0",
)  # fmt: skip


def entries() -> Iterator[Entry]:
    """One line a pair."""
    for architecture in _ARCHITECTURES:
        yield _entry(architecture, "resnet18", 128 if architecture == "pan" else 64)
    for encoder in _ENCODERS:
        yield _entry("unet", encoder, 96 if encoder.startswith("inception") else 64)
    yield _entry("dpt", "tu-vit_tiny_patch16_224", 224)


def _entry(architecture: str, encoder: str, size: int) -> Entry:
    build = partial(_smp.create_model, architecture, encoder_name=encoder, encoder_weights=None)
    return Entry("smp", f"{architecture}.{encoder}", build, noise_of(1, 3, size, size))
