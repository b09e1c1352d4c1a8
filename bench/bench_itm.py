"""Matching every prompt of HICO-DET against an image: our scorers against the stock classes with the same weights.

Random weights of std 0.02 at BLIP-base's and BLIP-2's sizes, random image states (what the vision tower would give: it
runs once per image on either side and is left out). All sides score the same prompts against the same image, in turn:

* expanded: the stock text model with the image's states repeated for every prompt, as the class's own forward has them;
* batch of one: the stock text model with the image's states once, left to broadcast;
* ours: with what depends on prompts alone kept from an earlier image, as in a run over many images.

The stock sides take 60 prompts at a time. On a CPU what counts is the process's CPU time on one thread; on CUDA wall time,
in bfloat16, with many images at once on our side, and the arithmetic limit is that of a large matrix product measured in
the same process.

    python -m bench.bench_itm [--json] [--device cpu|cuda] [--prompts N] [--only blip_384|blip2_364|blip2_224]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hoi_distill.pipeline.planning.model_arithmetic import Matching
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.teacher.blip.blip2_scorer import Blip2ItmScorer
from hoi_distill.stages.teacher.blip.itm_scorer import ItmScorer, PromptScorer

STOCK_PROMPTS = 60
HICO_TRAIN = 38_118
"""Training images of HICO-DET."""


SETTINGS = {
    "blip_384": Matching("blip", 577, 768),
    "blip2_364": Matching("blip2", 677, 1408, queries=32),
    "blip2_224": Matching("blip2", 257, 1408, queries=32),
}


def tokenizer_of(prompts: Sequence[str]) -> Any:
    """One token a word."""
    from transformers import BertTokenizer

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    words = [*special, *sorted({word for prompt in prompts for word in prompt.split()})]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


Stock = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
"""``stock(ids and mask [P, L], image states [P or 1, N, D]) -> logits [P, 2]``."""


def blip(tokenizer: Any, device: str, dtype: torch.dtype, memory_mib: int) -> tuple[PromptScorer, Stock]:
    """Our scorer of BLIP at real size with random weights, and the stock forward."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    text = {"num_attention_heads": 12, "bos_token_id": 5}
    model = BlipForImageTextRetrieval(BlipConfig(text_config=text, vision_config={"num_hidden_layers": 1})).eval()
    model = model.to(device, dtype)

    def stock(asked: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        seen = torch.ones(image.shape[:2], dtype=torch.long, device=device)
        states = model.text_encoder(**asked, encoder_hidden_states=image, encoder_attention_mask=seen)
        logits: torch.Tensor = model.itm_head(states.last_hidden_state[:, 0])
        return logits

    return ItmScorer(model, tokenizer, memory_mib=memory_mib), stock


def blip2(tokenizer: Any, device: str, dtype: torch.dtype, memory_mib: int) -> tuple[PromptScorer, Stock]:
    """The same of BLIP-2."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    config = Blip2Config(
        vision_config={"num_hidden_layers": 1},
        qformer_config={"use_qformer_text_input": True},
        text_config={"model_type": "opt", "num_hidden_layers": 1, "hidden_size": 16, "vocab_size": 8},
    )
    model = Blip2ForImageTextRetrieval(config).eval()
    model.query_tokens.data.normal_(std=0.02)
    model = model.to(device, dtype)

    def stock(asked: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        ids, mask = asked["input_ids"], asked["attention_mask"]
        queries = model.query_tokens.expand(len(ids), -1, -1)
        states = model.qformer(
            query_embeds=model.embeddings(input_ids=ids, query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=torch.cat((mask.new_ones(queries.shape[:2]), mask), 1),
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long, device=device),
        ).last_hidden_state
        logits: torch.Tensor = model.itm_head(states[:, : queries.shape[1]]).mean(1)
        return logits

    return Blip2ItmScorer(model, tokenizer, memory_mib), stock


def timed(device: str, run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Seconds (CPU time of this process; on CUDA wall time) and the answer."""
    if device == "cuda":
        torch.cuda.synchronize()
        started, answer = time.perf_counter(), run()
        torch.cuda.synchronize()
        return time.perf_counter() - started, answer
    started, answer = time.process_time(), run()
    return time.process_time() - started, answer


def product_limit(device: str, dtype: torch.dtype) -> float:
    """Multiply-adds per second of a large matrix product, the best of five."""
    size = 8192 if device == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(timed(device, lambda: a @ b)[0] for _ in range(6))
    return size**3 / best


@torch.inference_mode()
def measure(setting: Matching, prompts: Sequence[str], device: str) -> dict[str, Any]:
    """Seconds per image of every side, their ratios, and how far the logits lie apart."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    batch, memory_mib = (32, 16384) if device == "cuda" else (1, 256)
    tokenizer = tokenizer_of(prompts)
    torch.manual_seed(0)
    scorer, stock = {"blip": blip, "blip2": blip2}[setting.family](tokenizer, device, dtype, memory_mib)
    images = torch.randn(batch, setting.image_tokens, setting.image_width).to(device, dtype)
    groups = [prompts[start : start + STOCK_PROMPTS] for start in range(0, len(prompts), STOCK_PROMPTS)]

    def ask(copies: Callable[[int], int]) -> torch.Tensor:
        answers = []
        for group in groups:
            text = tokenizer(list(group), padding=True, return_tensors="pt").to(device)
            asked = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
            answers.append(stock(asked, images[:1].repeat(copies(len(group)), 1, 1)).float())
        return torch.cat(answers)

    scorer.score(images[:1, :8], prompts)  # what depends on prompts alone is there before the first image
    if device == "cuda":  # kernels are chosen at first use
        ask(lambda count: count)
        scorer.score(images, prompts)
    ours_s, ours = timed(device, lambda: scorer.score(images, prompts))
    one_s, shared = timed(device, lambda: ask(lambda _count: 1))
    expanded_s, expanded = timed(device, lambda: ask(lambda count: count))
    moved = float((expanded.amax(0) - expanded.amin(0)).max())
    lengths = [len(ids) for ids in scorer.token_ids(prompts)]
    ours_s /= batch
    result = {
        "seconds_expanded": expanded_s,
        "seconds_batch_of_one": one_s,
        "seconds_ours": ours_s,
        "times_faster_than_expanded": expanded_s / ours_s,
        "times_faster_than_batch_of_one": one_s / ours_s,
        "arithmetic_ratio_to_expanded": setting.macs_stock(lengths) / setting.macs_ours(lengths),
        "pairs_per_second": len(prompts) / ours_s,
        "fraction_of_matrix_product": setting.macs_ours(lengths) / ours_s / product_limit(device, dtype),
        "largest_difference": float((ours[0] - expanded).abs().max()),
        "largest_difference_batch_of_one": float((shared - expanded).abs().max()),
        "prompts_move_logits_by": moved,
    }
    if device == "cuda":
        result["hours_for_hico_det_train"] = HICO_TRAIN * 600 / (len(prompts) / ours_s) / 3600
    return result


def main() -> None:
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--prompts", type=int, default=600, help="spread over HICO-DET's 600")
    parser.add_argument("--only", choices=tuple(SETTINGS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    every = hico_vocabulary().prompts()
    prompts = [every[index * len(every) // arguments.prompts] for index in range(arguments.prompts)]
    names = [arguments.only] if arguments.only else list(SETTINGS)
    result: dict[str, Any] = {"device": arguments.device, "prompts": len(prompts)}
    for name in names:
        result[name] = measure(SETTINGS[name], prompts, arguments.device)
        if not arguments.json:
            print(name, *(f"{key} {value:.4g}" for key, value in result[name].items()), sep="\n  ", flush=True)
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
