"""The scorer is the stock forward, faster."""

from __future__ import annotations

import pytest
import torch
from transformers import BlipForImageTextRetrieval

from hoi_distill.stages.teacher.blip.itm_scorer import ItmScorer
from hoi_distill.storage.errors import UserError
from tests.fixtures.tiny_blip import SENTENCE, random_prompts

WORDS = SENTENCE.split()


def stock_scores(model, processor, pixels, prompts, first_token=None) -> torch.Tensor:
    """``[B, P, 2]`` from the class's own forward, one image with all prompts, padded and masked, at a time."""
    text = processor.tokenizer(prompts, padding=True, return_tensors="pt")
    if first_token is not None:
        text["input_ids"][:, 0] = first_token
    with torch.no_grad():
        rows = [
            model(
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
                pixel_values=image.expand(len(prompts), -1, -1, -1),
            ).itm_score
            for image in pixels
        ]
    return torch.stack(rows).float()


def scores(model, processor, pixels, prompts, **options) -> torch.Tensor:
    with torch.no_grad():
        image = model.vision_model(pixel_values=pixels.to(model.dtype)).last_hidden_state
    return ItmScorer(model, processor.tokenizer, **options).score(image, prompts)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("memory_mib", [256, 0])
def test_scores_equal_the_stock_forward(blip_config, processor, pixels, layers, memory_mib):
    torch.manual_seed(layers)
    model = BlipForImageTextRetrieval(blip_config(num_hidden_layers=layers)).eval()
    prompts = random_prompts(40)
    for images in (pixels[:2], pixels[2:]):
        ours = scores(model, processor, images, prompts, memory_mib=memory_mib)
        stock = stock_scores(model, processor, images, prompts)
        assert stock.std(1).min() > 1e-4, "the prompts must be told apart for equality to mean anything"
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)


def test_large_weights_agree_too(blip_config, processor, pixels):
    """Attention far from uniform: a wrong mask or scale would show here."""
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(blip_config(initializer_range=0.2)).eval()
    prompts = random_prompts(30)
    stock = stock_scores(model, processor, pixels, prompts)
    assert stock.std(1).min() > 1e-2
    torch.testing.assert_close(scores(model, processor, pixels, prompts), stock, atol=1e-4, rtol=0)


def test_bfloat16_stays_near_the_stock_float32(blip_config, processor, pixels):
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(blip_config()).eval()
    prompts = random_prompts(30)
    stock = stock_scores(model, processor, pixels, prompts)
    ours = scores(model.to(torch.bfloat16), processor, pixels, prompts)
    torch.testing.assert_close(ours, stock, atol=1e-2, rtol=0)


def test_a_score_does_not_depend_on_what_else_is_asked(blip_config, processor, pixels):
    model = BlipForImageTextRetrieval(blip_config()).eval()
    prompts = random_prompts(30)
    everything = scores(model, processor, pixels, prompts)
    for asked in ([7], [29, 3, 11], list(range(0, 30, 2))):
        subset = scores(model, processor, pixels, [prompts[index] for index in asked])
        torch.testing.assert_close(subset, everything[:, asked], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores(model, processor, pixels[1:2], prompts), everything[1:2], atol=1e-5, rtol=0)


def test_chunks_and_kept_prefixes_stay_within_the_memory_budget(blip_config, processor, monkeypatch):
    model = BlipForImageTextRetrieval(blip_config()).eval()
    scorer, prompts = ItmScorer(model, processor.tokenizer, memory_mib=1), random_prompts(300)
    seen = []
    score_chunk = scorer.score_chunk

    def watched(prefix, memory, images):
        prompts, length = prefix[0].shape[:2]
        held = sum(tensor.nbytes for pair in memory for tensor in pair)
        seen.append((images, prompts, held, images * prompts * scorer.bytes_per_prompt(length)))
        return score_chunk(prefix, memory, images)

    monkeypatch.setattr(scorer, "score_chunk", watched)
    scorer.score(torch.randn(40, 17, 64), prompts)
    images, asked, held, working = (max(column) for column in zip(*seen, strict=True))
    assert images > 1
    assert asked > 1
    assert held <= 2**19
    assert working <= 2**19
    assert scorer._kept_bytes <= 1.5 * 2**20


def test_enc_mode_is_the_stock_forward_led_by_enc(blip_config, processor, pixels):
    model = BlipForImageTextRetrieval(blip_config()).eval()
    prompts = random_prompts(10)
    enc = processor.tokenizer.get_vocab()["[ENC]"]
    stock = stock_scores(model, processor, pixels, prompts, first_token=enc)
    ours = scores(model, processor, pixels, prompts, token_mode="enc")
    torch.testing.assert_close(ours, stock, atol=1e-5, rtol=0)
    assert (ours - scores(model, processor, pixels, prompts)).abs().max() > 1e-4


def test_the_pico_class_is_scored_alike():
    from hoi_distill.stages.teacher.pico.modeling.blip import (
        PicoBlipForImageTextRetrieval,
        build_config,
        build_processor,
    )

    processor = build_processor(set(WORDS))
    torch.manual_seed(0)
    model = PicoBlipForImageTextRetrieval(build_config(len(processor.tokenizer))).eval()
    pixels = torch.randn(2, 3, 128, 128)
    prompts = random_prompts(8)
    stock = stock_scores(model, processor, pixels, prompts)
    torch.testing.assert_close(scores(model, processor, pixels, prompts), stock, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("prompt", "why"), [("a person riding a zeppelin", "does not know"), ("a " * 60, "62 tokens")])
def test_a_prompt_that_cannot_be_scored_is_named(blip_config, processor, pixels, prompt, why):
    model = BlipForImageTextRetrieval(blip_config()).eval()
    with pytest.raises(UserError, match=why) as error:
        scores(model, processor, pixels, ["a dog", prompt])
    assert prompt in str(error.value)
