"""BLIP with a convolutional stem, as transformers classes of their own.

A patch-16 linear stem did not learn the pico world in CPU minutes; six convolutions in its place did. All the rest is
BLIP: the forward API, ``vision_model``, ``text_encoder``, ``itm_head``, ``vision_proj``, ``text_proj``,
``text_decoder`` and ``generate`` are the stock classes' own. Importing this module registers the classes with
transformers' Auto classes, so that ``from_pretrained`` needs no remote code. The *stock* BLIP classes would only warn
about such a checkpoint and leave the stem untrained, so the model type differs and loaders must refuse missing keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipImageProcessorPil,
    BlipProcessor,
)
from typing_extensions import override

from hoi_distill.storage.errors import UserError

IMAGE_SIZE = 128
STRIDE = 16
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")


class PicoBlipConfig(BlipConfig):
    """A BLIP config whose vision tower starts with :class:`ConvStem`; no fields of its own."""

    model_type = "pico_blip"


class ConvStem(nn.Module):
    """Six 3x3 convolutions with batch norm and ReLU, total stride 16: ``[B, 3, H, W] -> [B, width, H/16, W/16]``.

    Stands where BLIP has its patch embedding, one linear map per 16 x 16 patch.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = (3, width // 6, width // 3, width // 3, 2 * width // 3, 2 * width // 3, width)
        strides = (2, 2, 1, 2, 1, 2)
        layers: list[nn.Module] = []
        for c_in, c_out, stride in zip(channels, channels[1:], strides, strict=False):
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    @property
    def weight(self) -> torch.Tensor:
        """The first convolution's: BlipVisionEmbeddings asks its patch embedding for a dtype."""
        return self.layers[0].weight  # type: ignore[return-value]

    @override
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """float ``[B, 3, 128, 128]`` to cells, float ``[B, C, 8, 8]``."""
        return self.layers(pixel_values)


def _replace_stem(model: BlipForImageTextRetrieval | BlipForConditionalGeneration) -> None:
    embeddings: Any = model.vision_model.embeddings
    embeddings.patch_embedding = ConvStem(embeddings.embed_dim)
    model.post_init()  # type: ignore[no-untyped-call]


class PicoBlipForImageTextRetrieval(BlipForImageTextRetrieval):
    """Image-text matching and contrastive scores; ``config.image_text_hidden_size`` wide projections."""

    config: PicoBlipConfig
    config_class = PicoBlipConfig

    def __init__(self, config: PicoBlipConfig) -> None:
        super().__init__(config)
        _replace_stem(self)


class PicoBlipForConditionalGeneration(BlipForConditionalGeneration):
    """Captions and answers; see :mod:`hoi_distill.stages.teacher.pico.training.captions` for the texts it was trained
    to continue."""

    config: PicoBlipConfig
    config_class = PicoBlipConfig

    def __init__(self, config: PicoBlipConfig) -> None:
        super().__init__(config)
        _replace_stem(self)


_Model = TypeVar("_Model", PicoBlipForImageTextRetrieval, PicoBlipForConditionalGeneration)

AutoConfig.register(PicoBlipConfig.model_type, PicoBlipConfig)
AutoModel.register(PicoBlipConfig, PicoBlipForImageTextRetrieval)
AutoModelForImageTextToText.register(PicoBlipConfig, PicoBlipForConditionalGeneration)


def build_config(
    vocab_size: int, *, image_size: int = IMAGE_SIZE, width: int = 192, text_width: int = 144, text_layers: int = 3
) -> PicoBlipConfig:
    """The pico teacher's architecture, or a smaller one of its make: a tower of 2 layers over cells of 16 pixels.

    Args:
        vocab_size: Of the tokenizer.
        image_size: Pixels of an image's side.
        width: Of the tower.
        text_width: Of the text encoder, or decoder.
        text_layers: Its layers.
    """
    special = {name: SPECIAL_TOKENS.index(name) for name in SPECIAL_TOKENS}
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": STRIDE,
        "initializer_range": 0.02,  # the library's default of 1e-10 leaves a fresh tower at zero
    }
    text = {
        "vocab_size": vocab_size,
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": text_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": special["[DEC]"],
        "eos_token_id": special["[SEP]"],
        "sep_token_id": special["[SEP]"],
        "pad_token_id": special["[PAD]"],
    }
    return PicoBlipConfig(vision_config=vision, text_config=text, image_text_hidden_size=96, projection_dim=96)


def build_processor(words: set[str], image_size: int = IMAGE_SIZE) -> BlipProcessor:
    """A BERT tokenizer that knows ``words`` whole and can spell others, with BLIP's image processor at so many pixels."""
    spelling = "abcdefghijklmnopqrstuvwxyz0123456789"
    single = set(spelling) | set(".,:;?!'-()/")
    pieces = [*SPECIAL_TOKENS, *sorted(single | words), *(f"##{c}" for c in spelling)]
    tokenizer = BertTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        do_lower_case=True,
        bos_token="[DEC]",
        additional_special_tokens=["[ENC]"],
        model_max_length=128,
    )
    size = {"height": image_size, "width": image_size}
    return BlipProcessor(BlipImageProcessorPil(size=size), tokenizer)


def load_strict(cls: type[_Model], folder: Path) -> _Model:
    """``cls.from_pretrained(folder)`` in eval mode.

    Raises:
        UserError: the checkpoint lacks keys of the class or has others; transformers itself would only warn.
    """
    loading: Any = cls
    model, info = loading.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
    if wrong:
        raise UserError(f"{folder}: checkpoint does not fit {cls.__name__}: {wrong}; run make pico-teacher")
    return model.eval()
