"""At the sizes that people use, in float32, the scorers are the stock classes to 1e-4.

Weights are drawn with std 0.02: BLIP's and BLIP-2's own default for the tower is 1e-10, with which all images look alike
and any scorer would agree. BLIP's towers are whole; of BLIP-2's ViT-g one layer of 39 is there, at its real width: 677
tokens of 1,408 reach a Q-Former of real size.
"""

from __future__ import annotations

import pytest
import torch

from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.teacher.blip.blip2_scorer import Blip2ItmScorer
from hoi_distill.stages.teacher.blip.itm_scorer import ItmScorer

TOLERANCE = 1e-4
PROMPTS = [hico_vocabulary().prompts()[index] for index in (0, 57, 300, 599)]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    words = [*special, *sorted({word for prompt in PROMPTS for word in prompt.split()})]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def images(side: int) -> torch.Tensor:
    """``[2, 3, side, side]``: noise, and a ramp from left to right."""
    ramp = torch.linspace(-2, 2, side).expand(3, side, side)
    return torch.stack((torch.randn(3, side, side, generator=torch.Generator().manual_seed(0)), ramp))


@torch.no_grad()
def compare(model, scorer, stock) -> None:
    """``stock(pixels [P, 3, h, w]) -> logits [P, 2]`` of one image, repeated, with every prompt."""
    pixels = images(model.config.vision_config.image_size)
    expected = torch.stack([stock(image.expand(len(PROMPTS), -1, -1, -1)) for image in pixels])
    ours = scorer.score(model.vision_model(pixel_values=pixels).last_hidden_state, PROMPTS)
    for axis in (0, 1):
        moved = expected.amax(axis) - expected.amin(axis)
        assert moved.max() >= 100 * TOLERANCE, "image and prompt must move the logits for equality to mean anything"
    assert (ours - expected).abs().max() <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("size", ["base", "large"])
def test_blip(tokenizer, size):
    from transformers import BlipConfig, BlipForImageTextRetrieval

    large = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = {"initializer_range": 0.02, "image_size": 384, **(large if size == "large" else {})}
    text = {"num_attention_heads": 12, "bos_token_id": 5, "encoder_hidden_size": vision.get("hidden_size", 768)}
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config=vision)).eval()
    asked = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    inputs = {"input_ids": asked["input_ids"], "attention_mask": asked["attention_mask"]}
    compare(model, ItmScorer(model, tokenizer), lambda pixels: model(pixel_values=pixels, **inputs).itm_score)


@pytest.mark.slow
@pytest.mark.parametrize("side", [224, 364])
def test_blip2(tokenizer, side):
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    config = Blip2Config(
        vision_config={"initializer_range": 0.02, "num_hidden_layers": 1, "image_size": side},
        qformer_config={"use_qformer_text_input": True},
        text_config={"model_type": "opt", "num_hidden_layers": 1, "hidden_size": 16, "vocab_size": 8},
    )
    torch.manual_seed(0)
    model = Blip2ForImageTextRetrieval(config).eval()
    model.query_tokens.data.normal_(std=0.02)
    asked = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    inputs = {"input_ids": asked["input_ids"], "attention_mask": asked["attention_mask"]}
    compare(
        model,
        Blip2ItmScorer(model, tokenizer),
        lambda pixels: model(pixel_values=pixels, use_image_text_matching_head=True, **inputs).logits_per_image,
    )
