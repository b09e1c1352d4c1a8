"""Tiny random checkpoints of the real BLIP-2 classes, saved as a user's would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.teacher.conftest import WORDS

QUERIES = 6


def blip2_config(*, image_size: int = 56, **qformer: Any):
    """A BLIP-2 of 2 vision and 4 Q-Former layers on 4 x 4 patches, weights of std 0.02."""
    from transformers import Blip2Config

    shape = {"num_hidden_layers": 4, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    tokens = {"vocab_size": len(WORDS), "pad_token_id": 0, "max_position_embeddings": 40}
    vision = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    return Blip2Config(
        qformer_config={**shape, **tokens, "use_qformer_text_input": True, **qformer},
        vision_config={**vision, "image_size": image_size, "patch_size": 14, "initializer_range": 0.02},
        text_config={"model_type": "opt", "num_hidden_layers": 1, "hidden_size": 16, "vocab_size": len(WORDS)},
        num_query_tokens=QUERIES,
        image_text_hidden_size=32,
    )


def blip2_model(**config: Any):
    """In evaluation mode; query tokens, which the class leaves at zero, are drawn with std 0.02."""
    from transformers import Blip2ForImageTextRetrieval

    model = Blip2ForImageTextRetrieval(blip2_config(**config)).eval()
    model.query_tokens.data.normal_(std=0.02)
    return model


def save_blip2(folder: Path, tokenizer: Any, **config: Any) -> Path:
    """Model, image processor and tokenizer."""
    from transformers import BlipImageProcessorPil

    model = blip2_model(**config)
    model.save_pretrained(folder)
    side = model.config.vision_config.image_size
    BlipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
