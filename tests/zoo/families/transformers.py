"""The models of transformers that have convolutions, in small configurations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch

from tests import torchvision_models  # the package imports torchvision where that is installed
from tests.zoo.entries import Entry, noise

_transformers = torchvision_models.import_after_torchvision("transformers")
_RESIDUAL = {"embedding_size": 16, "hidden_sizes": (32, 48, 64, 96), "depths": (1, 1, 1, 1)}
_STAGES = {"hidden_sizes": (16, 24, 32, 48), "depths": (1, 1, 1, 1)}
_ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_DETR = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 5,
}  # fmt: skip
_SPEECH = {**_ENCODER, "conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
           "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip


def entries() -> Iterator[Entry]:
    """One line a model."""
    yield from _classifiers()
    yield from _dense()
    yield from _sounds()
    yield from _texts()


def _classifiers() -> Iterator[Entry]:
    small: Mapping[str, Mapping[str, Any]] = {
        "ResNet": _RESIDUAL, "RegNet": {**_RESIDUAL, "groups_width": 8}, "ConvNext": _STAGES, "ConvNextV2": _STAGES,
        "MobileNetV1": {"depth_multiplier": 0.5}, "MobileNetV2": {"depth_multiplier": 0.5},
        "EfficientNet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}, "PoolFormer": {},
        "Bit": {**_RESIDUAL, "num_groups": 8}, "Cvt": {},
        "MobileViT": {}, "MobileViTV2": {"width_multiplier": 0.5},
        "PvtV2": {}, "Segformer": {}, "FocalNet": {},
        "HGNetV2": {},
    }  # fmt: skip
    for name, options in small.items():
        yield _entry(f"{name}ForImageClassification", name, noise(1, 3, 64, 64), options)
    yield _entry("SwiftFormerForImageClassification", "SwiftFormer", noise(1, 3, 64, 64))
    yield _entry("LevitForImageClassification", "Levit", noise(1, 3, 64, 64), {"image_size": 64})
    yield _entry("ViTForImageClassification", "ViT", noise(1, 3, 64, 64), {**_ENCODER, "image_size": 64})
    yield _entry("SwinForImageClassification", "Swin", noise(1, 3, 64, 64),
                 {"image_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2),
                  "window_size": 4})  # fmt: skip
    yield _entry("CLIPVisionModel", "CLIPVision", noise(1, 3, 64, 64), {**_ENCODER, "image_size": 64})


def _dense() -> Iterator[Entry]:
    yield _entry("SegformerForSemanticSegmentation", "Segformer", noise(1, 3, 64, 64), {"decoder_hidden_size": 32})
    yield _entry("MobileViTForSemanticSegmentation", "MobileViT", noise(1, 3, 64, 64))
    yield _entry("MobileNetV2ForSemanticSegmentation", "MobileNetV2", noise(1, 3, 64, 64), {"depth_multiplier": 0.5})
    yield _entry("GLPNForDepthEstimation", "GLPN", noise(1, 3, 64, 64))
    yield _entry("Swin2SRForImageSuperResolution", "Swin2SR", noise(1, 3, 32, 32),
                 {"image_size": 32, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2),
                  "window_size": 8})  # fmt: skip
    yield Entry(
        "transformers", "DetrForObjectDetection", partial(_make_detr, "Detr"), lambda model: noise(1, 3, 64, 64)
    )
    yield Entry("transformers", "ConditionalDetrForObjectDetection", partial(_make_detr, "ConditionalDetr"),
                lambda model: noise(1, 3, 64, 64))  # fmt: skip
    yield Entry("transformers", "UperNetForSemanticSegmentation", _make_upernet, lambda model: noise(1, 3, 64, 64))
    yield Entry(
        "transformers", "MaskFormerForInstanceSegmentation", _make_maskformer, lambda model: noise(1, 3, 64, 64)
    )
    yield _entry("DPTForDepthEstimation", "DPT", noise(1, 3, 64, 64),
                 {**_ENCODER, "num_hidden_layers": 4, "image_size": 64, "backbone_out_indices": (0, 1, 2, 3),
                  "neck_hidden_sizes": (16, 16, 24, 24), "fusion_hidden_size": 16})  # fmt: skip
    yield _entry("VitDetModel", "VitDet", noise(1, 3, 64, 64),
                 {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
                  "residual_block_indices": [1]})  # fmt: skip


def _sounds() -> Iterator[Entry]:
    for name in ("Wav2Vec2", "Hubert", "WavLM"):
        yield _entry(f"{name}Model", name, noise(1, 3200), _SPEECH)
    yield _entry("WhisperModel", "Whisper", {"input_features": noise(1, 16, 60), "decoder_input_ids": _tokens(4)},
                 {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                  "num_mel_bins": 16, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
                  "vocab_size": 99,
                  "max_source_positions": 30, "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1,
                  "eos_token_id": 2, "decoder_start_token_id": 1})  # fmt: skip
    yield Entry("transformers", "EncodecModel", _make_encodec, lambda model: noise(1, 1, 3200))
    yield _entry(
        "DacModel", "Dac", noise(1, 1, 2048), {"encoder_hidden_size": 16, "decoder_hidden_size": 64, "n_codebooks": 2}
    )
    yield _entry("VitsModel", "Vits", _tokens(8),
                 {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 64, "flow_size": 32,
                  "spectrogram_bins": 65, "upsample_initial_channel": 32, "vocab_size": 38, "noise_scale": 0.0,
                  "use_stochastic_duration_prediction": False})  # fmt: skip
    yield _entry("SpeechT5HifiGan", "SpeechT5HifiGan", noise(1, 12, 80), {"upsample_initial_channel": 32})
    yield _entry("UnivNetModel", "UnivNet", noise(1, 12, 100), {"model_hidden_channels": 8})


def _texts() -> Iterator[Entry]:
    yield _entry("SqueezeBertModel", "SqueezeBert", _tokens(6), {**_ENCODER, "vocab_size": 99, "embedding_size": 32})
    yield _entry("T5Model", "T5", {"input_ids": _tokens(6), "decoder_input_ids": _tokens(4)},
                 {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2,
                  "vocab_size": 99})  # fmt: skip
    yield _entry("MambaModel", "Mamba", _tokens(6), {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 99})


def _tokens(length: int) -> torch.Tensor:
    return torch.arange(3, 3 + length)[None]


def _entry(model: str, config: str, inputs: Any, options: Mapping[str, Any] | None = None) -> Entry:
    return Entry("transformers", model, partial(_make, model, config, options or {}), lambda made: inputs)


def _make(model: str, config: str, options: Mapping[str, Any]) -> Any:
    made = getattr(_transformers, f"{config}Config")(**options)
    return getattr(_transformers, model)(made)


def _residual_backbone() -> Any:
    return _transformers.ResNetConfig(**_RESIDUAL, out_features=["stage1", "stage2", "stage3", "stage4"])


def _make_detr(name: str) -> Any:
    backbone = _transformers.ResNetConfig(**_RESIDUAL, out_features=["stage4"])
    config = getattr(_transformers, f"{name}Config")(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone, **_DETR
    )
    return getattr(_transformers, f"{name}ForObjectDetection")(config)


def _make_upernet() -> Any:
    config = _transformers.UperNetConfig(
        backbone_config=_residual_backbone(), hidden_size=32, auxiliary_in_channels=64, auxiliary_channels=16
    )
    return _transformers.UperNetForSemanticSegmentation(config)


def _make_maskformer() -> Any:
    decoder = _transformers.DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
                                       backbone_config=_residual_backbone(), **_DETR)  # fmt: skip
    config = _transformers.MaskFormerConfig(
        fpn_feature_size=32, mask_feature_size=32, backbone_config=_residual_backbone(), decoder_config=decoder
    )
    return _transformers.MaskFormerForInstanceSegmentation(config)


def _make_encodec() -> Any:
    made = _transformers.EncodecModel(_transformers.EncodecConfig(hidden_size=32, codebook_dim=32, num_filters=8))
    for name, values in made.named_buffers():
        if name.endswith("codebook.embed"):  # zeros until trained, and then nothing gets through
            values.normal_()
    return made
