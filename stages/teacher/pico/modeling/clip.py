"""CLIP with the pico teacher's convolutional stem, as transformers classes of their own.

Everything but the stem (:class:`hoi_distill.stages.teacher.pico.modeling.blip.ConvStem`, six convolutions instead of one linear
map a patch)
is stock CLIP: ``vision_model``, ``text_model``, both projections, ``get_image_features`` and ``get_text_features``.
Importing this module registers the class with transformers' Auto classes.
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
)

from hoi_distill.stages.teacher.pico.modeling.blip import IMAGE_SIZE, STRIDE, ConvStem


class PicoClipConfig(CLIPConfig):
    """A CLIP config whose vision tower starts with a :class:`ConvStem`; no fields of its own."""

    model_type = "pico_clip"


class PicoClipModel(CLIPModel):
    """Images and texts in one space of ``config.projection_dim``."""

    config: PicoClipConfig
    config_class = PicoClipConfig

    def __init__(self, config: PicoClipConfig) -> None:
        super().__init__(config)
        embeddings = self.vision_model.embeddings
        embeddings.patch_embedding = ConvStem(embeddings.embed_dim)
        self.post_init()


AutoConfig.register(PicoClipConfig.model_type, PicoClipConfig)
AutoModel.register(PicoClipConfig, PicoClipModel)


def build_model(tokenizer: BertTokenizer, image_size: int = IMAGE_SIZE) -> PicoClipModel:
    """The shipped architecture, freshly initialised: 144-wide tower of 2 layers over cells of 16 pixels, 96-wide text of 2."""
    vision = {
        "hidden_size": 144,
        "intermediate_size": 576,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": STRIDE,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 77,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return PicoClipModel(PicoClipConfig(vision_config=vision, text_config=text, projection_dim=96))


def build_processor(tokenizer: BertTokenizer, image_size: int = IMAGE_SIZE) -> CLIPProcessor:
    """CLIP's image processor at so many pixels beside ``tokenizer``."""
    size = {"height": image_size, "width": image_size}
    return CLIPProcessor(CLIPImageProcessorPil(size=size, crop_size=size), tokenizer)
