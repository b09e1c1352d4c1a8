"""Keys and values of what was written so far: a cache that grows against a static one of the answer's full length.

LLaVA with 576 tokens of an image and Qwen2.5-VL with 144, their language models 6 layers of 256 channels, random weights: four
images, 64 new tokens each, greedily, on one thread. The two caches take turns. Both must write the same tokens. Without
compilation a static cache saves the copy of what was there for each token, and attends to places that are still empty.

    python -m bench.bench_answers [--json] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

IMAGES, NEW_TOKENS, QUESTION = 4, 64, 20
MARK = 990
LANGUAGE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 1000,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
TOWER: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "patch_size": 14}


def llava() -> tuple[Any, dict[str, torch.Tensor]]:
    """A model, and what it is given."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tower = CLIPVisionConfig(**TOWER, num_hidden_layers=2, num_attention_heads=4, image_size=336)
    config = LlavaConfig(vision_config=tower, text_config=LlamaConfig(**LANGUAGE), image_token_index=MARK)
    return drawn(LlavaForConditionalGeneration(config)), {
        **prompt(576),
        "pixel_values": torch.randn(IMAGES, 3, 336, 336),
    }


def qwen() -> tuple[Any, dict[str, torch.Tensor]]:
    """A model, and what it is given."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    tower = {
        **TOWER,
        "depth": 2,
        "num_heads": 4,
        "out_hidden_size": 256,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }
    text = {**LANGUAGE, "num_key_value_heads": 2, "rope_parameters": rope}
    marks = {"image_token_id": MARK, "video_token_id": 991, "vision_start_token_id": 992, "vision_end_token_id": 993}
    given = prompt(144)
    given["mm_token_type_ids"] = (given["input_ids"] == MARK).int()
    given["pixel_values"] = torch.randn(IMAGES * 576, 3 * 2 * 14 * 14)
    given["image_grid_thw"] = torch.tensor([[1, 24, 24]] * IMAGES)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=tower, **marks)
    return drawn(Qwen2_5_VLForConditionalGeneration(config)), given


def drawn(model: nn.Module) -> nn.Module:
    """The model with weights so large that its tokens differ."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0, 1.5 / parameter[0].numel() ** 0.5)
    return model.eval()


def prompt(image_tokens: int) -> dict[str, torch.Tensor]:
    """A question with an image in it."""
    words = torch.randint(2, 900, (IMAGES, QUESTION))
    ids = torch.cat([words[:, :4], torch.full((IMAGES, image_tokens), MARK), words[:, 4:]], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def measure(model: Any, given: dict[str, torch.Tensor], rounds: int) -> dict[str, Any]:
    """CPU milliseconds a step of all images, by cache, and whether both wrote the same."""
    spent: dict[str, list[float]] = {"growing": [], "static": []}
    written: dict[str, torch.Tensor] = {}
    wish = {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    for number in range(rounds + 1):
        for name in spent:
            kind = "static" if name == "static" else None
            started = time.process_time()
            written[name] = model.generate(**given, **wish, cache_implementation=kind)
            if number:  # the first round warms up
                spent[name].append((time.process_time() - started) * 1000 / NEW_TOKENS)
    return {
        **{f"{name}_ms": round(statistics.median(each), 2) for name, each in spent.items()},
        "static_over_growing": round(
            statistics.median(static / own for own, static in zip(spent["growing"], spent["static"], strict=True)), 3
        ),
        "same_tokens": torch.equal(written["growing"], written["static"]),
        "different_tokens": len(written["growing"][:, -NEW_TOKENS:].unique()),
    }


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        result = {name: measure(*make(), arguments.rounds) for name, make in {"llava": llava, "qwen": qwen}.items()}
    print(json.dumps(result, indent=None if arguments.json else 1))


if __name__ == "__main__":
    main()
