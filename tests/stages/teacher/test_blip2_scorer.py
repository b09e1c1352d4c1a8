"""The BLIP-2 scorer is the stock forward, faster."""

from __future__ import annotations

import pytest
import torch

from hoi_distill.stages.teacher.blip.blip2_scorer import Blip2ItmScorer
from hoi_distill.storage.errors import UserError
from tests.fixtures.tiny_blip import random_prompts
from tests.fixtures.tiny_blip2 import blip2_model


def stock_scores(model, tokenizer, pixels, prompts) -> torch.Tensor:
    """``[B, P, 2]`` from the class's own forward, one image with all prompts, padded and masked, at a time."""
    text = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        rows = [
            model(
                pixel_values=image.expand(len(prompts), -1, -1, -1),
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
                use_image_text_matching_head=True,
            ).logits_per_image
            for image in pixels
        ]
    return torch.stack(rows).float()


def scores(model, tokenizer, pixels, prompts, **options) -> torch.Tensor:
    with torch.no_grad():
        image = model.vision_model(pixel_values=pixels.to(model.dtype)).last_hidden_state
    return Blip2ItmScorer(model, tokenizer, **options).score(image, prompts)


@pytest.fixture
def tokenizer(processor):
    return processor.tokenizer


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("layers", "every"), [(1, 2), (2, 2), (3, 2), (4, 2), (4, 1), (4, 3)])
@pytest.mark.parametrize("memory_mib", [256, 0])
def test_scores_equal_the_stock_forward(tokenizer, pixels, layers, every, memory_mib):
    torch.manual_seed(layers)
    model = blip2_model(num_hidden_layers=layers, cross_attention_frequency=every, initializer_range=0.1)
    prompts = random_prompts(40)
    for images in (pixels[:2], pixels[2:]):
        ours = scores(model, tokenizer, images, prompts, memory_mib=memory_mib)
        stock = stock_scores(model, tokenizer, images, prompts)
        assert stock.std(1).min() > 1e-4, "the prompts must be told apart for equality to mean anything"
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)


def test_large_weights_agree_too(tokenizer, pixels):
    """Attention far from uniform: a wrong mask or scale would show here."""
    torch.manual_seed(0)
    model = blip2_model(initializer_range=0.3)
    prompts = random_prompts(30)
    stock = stock_scores(model, tokenizer, pixels, prompts)
    assert stock.std(1).min() > 1e-2
    assert stock.std(0).min() > 1e-3
    torch.testing.assert_close(scores(model, tokenizer, pixels, prompts), stock, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_the_stock_float32(tokenizer, pixels, dtype):
    torch.manual_seed(0)
    model = blip2_model()
    prompts = random_prompts(30)
    stock = stock_scores(model, tokenizer, pixels, prompts)
    torch.testing.assert_close(scores(model.to(dtype), tokenizer, pixels, prompts), stock, atol=1e-2, rtol=0)


def test_a_score_does_not_depend_on_what_else_is_asked(tokenizer, pixels):
    """Neither within a call nor of a scorer that has kept other prompts."""
    model = blip2_model(initializer_range=0.1)
    prompts = random_prompts(30)
    everything = scores(model, tokenizer, pixels, prompts)
    with torch.no_grad():
        image = model.vision_model(pixel_values=pixels).last_hidden_state
    scorer = Blip2ItmScorer(model, tokenizer)
    for asked in ([7], [29, 3, 11], list(range(0, 30, 2)), [3, 7, 3]):
        subset = scorer.score(image, [prompts[index] for index in asked])
        torch.testing.assert_close(subset, everything[:, asked], atol=1e-5, rtol=0)


def test_a_prompt_s_own_part_is_computed_once(tokenizer, pixels, monkeypatch):
    model, prompts = blip2_model(), random_prompts(20)
    scorer, asked = Blip2ItmScorer(model, tokenizer), []
    prefix = scorer.prefix
    monkeypatch.setattr(scorer, "prefix", lambda ids: asked.append(len(ids)) or prefix(ids))
    image = torch.randn(2, 17, 64)
    scorer.score(image, prompts[:15])
    scorer.score(image, prompts)
    scorer.score(image[:1], prompts[5:9])
    assert sum(asked) == len(set(prompts))


def test_a_q_former_without_text_input_is_refused(tokenizer):
    with pytest.raises(UserError, match="reads no text"):
        Blip2ItmScorer(blip2_model(use_qformer_text_input=False), tokenizer)
