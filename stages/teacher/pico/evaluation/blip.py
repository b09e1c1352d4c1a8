"""Measures the pico teacher on unseen scenes: ``python -m hoi_distill.stages.teacher.pico.evaluation.blip`` writes
``heldout.json``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoProcessor, BlipProcessor

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.teacher.pico.modeling.blip import (
    PicoBlipForConditionalGeneration,
    PicoBlipForImageTextRetrieval,
    load_strict,
)
from hoi_distill.stages.teacher.pico.training import captions, corpus
from hoi_distill.stages.teacher.pico.training.captions import Grammar
from hoi_distill.stages.teacher.pico.training.packing import pack
from hoi_distill.stages.teacher.weights import image_processor

SHIPPED = Path(__file__).parents[1]


def pixel_values(processor: BlipProcessor, pixels: np.ndarray) -> Tensor:
    """``uint8 [N, 128, 128, 3]`` -> what the model sees, float32 ``[N, 3, 128, 128]``."""
    return processor(images=list(pixels), return_tensors="pt")["pixel_values"]


@torch.inference_mode()
def itm_scores(
    model: PicoBlipForImageTextRetrieval, processor: BlipProcessor, images: Tensor, prompts: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Every prompt for every image: ITM margins (match minus no match) and ITC cosines, both float ``[N, P]``."""
    ids = processor.tokenizer(list(prompts))["input_ids"]
    margins, cosines = [], []
    alone = pack([[text] for text in ids])
    text = model.text_encoder(alone.ids, attention_mask=alone.mask(causal=False)).last_hidden_state[:, 0]
    text = F.normalize(model.text_proj(text), dim=-1)
    for chunk in images.split(50):
        states = model.vision_model(chunk).last_hidden_state
        packed = pack([ids] * len(chunk))
        hidden = model.text_encoder(
            packed.ids,
            attention_mask=packed.mask(causal=False),
            position_ids=packed.positions,
            encoder_hidden_states=states,
        ).last_hidden_state.flatten(0, 1)[packed.starts]
        logits = model.itm_head(hidden).view(len(chunk), len(ids), 2)
        margins.append(logits[..., 1] - logits[..., 0])
        cosines.append(F.normalize(model.vision_proj(states[:, 0]), dim=-1) @ text.T)
    return torch.cat(margins), torch.cat(cosines)


@torch.inference_mode()
def generate(
    model: PicoBlipForConditionalGeneration, processor: BlipProcessor, images: Tensor, prefix: str, beams: int = 1
) -> list[str]:
    """What the captioner says after ``prefix`` about each image, prefix included."""
    said: list[str] = []
    for chunk in images.split(100):
        asked = processor.tokenizer([prefix] * len(chunk), return_tensors="pt")
        out = model.generate(chunk, asked.input_ids, asked.attention_mask, max_new_tokens=72, num_beams=beams)
        said += processor.batch_decode(out, skip_special_tokens=True)
    return said


@torch.inference_mode()
def yes_margins(
    model: PicoBlipForConditionalGeneration, processor: BlipProcessor, images: Tensor, questions: Sequence[str]
) -> Tensor:
    """First-token logit of "yes" minus that of "no" for one question per image, float ``[N]``."""
    yes, no = processor.tokenizer.convert_tokens_to_ids([captions.YES, captions.NO])
    margins = []
    for start in range(0, len(images), 100):
        asked = processor.tokenizer(list(questions[start : start + 100]))["input_ids"]
        packed = pack([[[processor.tokenizer.bos_token_id, *ids[1:-1]]] for ids in asked])
        states = model.vision_model(images[start : start + 100]).last_hidden_state
        logits = model.text_decoder(
            packed.ids,
            attention_mask=packed.mask(causal=True),
            position_ids=packed.positions,
            encoder_hidden_states=states,
        ).logits
        last = logits[torch.arange(len(asked)), (packed.segments > 0).sum(1) - 1]
        margins.append(last[:, yes] - last[:, no])
    return torch.cat(margins)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Per row of ``[N, K]``: mean precision at each true item's rank; NaN where a row has no true item."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(truth, order, 1)
    precision = hits.cumsum(1) / np.arange(1, scores.shape[1] + 1)
    with np.errstate(invalid="ignore"):
        return (precision * hits).sum(1) / hits.sum(1)


def swap_accuracy(scores: np.ndarray, truth: np.ndarray, facts: Sequence[captions.Fact]) -> dict[str, float]:
    """True facts against false ones that differ in the verb alone, in the same image.

    ``pairwise``: share of such pairs where the true one scores higher. ``balanced``: mean of the shares of true facts
    above zero and of those false ones below zero.
    """
    objects = np.array([obj for _, obj in facts])
    same = objects[:, None] == objects[None, :]
    correct = total = 0.0
    swapped = np.zeros_like(truth)
    for row, true in enumerate(truth):
        for h in np.flatnonzero(true):
            wrong = same[h] & ~true
            swapped[row] |= wrong
            correct += (scores[row, h] > scores[row, wrong]).sum() + 0.5 * (scores[row, h] == scores[row, wrong]).sum()
            total += wrong.sum()
    balanced = 0.5 * ((scores[truth] > 0).mean() + (scores[swapped] <= 0).mean())
    return {"pairwise": correct / total, "balanced_at_0": float(balanced)}


def precision_recall(said: Sequence[Sequence[int]], truth: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Facts said against those that hold (``truth``) and those that should be said (``wanted``), bool ``[N, H]``."""
    named = np.zeros_like(truth)
    for row, facts in enumerate(said):
        named[row, list(facts)] = True
    return {
        "precision": float((named & truth).sum() / max(named.sum(), 1)),
        "recall": float((named & wanted).sum() / wanted.sum()),
        "exact_set": float((named == wanted).all(1).mean()),
    }


def evaluate(folder: Path, part: corpus.CorpusPart = corpus.HELD_OUT) -> dict[str, Any]:
    """All held-out figures of ``folder/itm`` and ``folder/caption``; the model card defines them."""
    held_out = corpus.load(part)
    grammar = Grammar(HOIS)
    primary, every = held_out.facts(grammar)
    processor = AutoProcessor.from_pretrained(folder / "itm")
    processor.image_processor = image_processor(folder / "itm")
    itm = load_strict(PicoBlipForImageTextRetrieval, folder / "itm")
    captioner = load_strict(PicoBlipForConditionalGeneration, folder / "caption")
    images = pixel_values(processor, held_out.pixels)

    figures: dict[str, Any] = {"scenes": len(images), "facts": len(grammar.facts), "part": part.describe()}
    margins, cosines = itm_scores(itm, processor, images, [captions.prompt(*fact) for fact in grammar.facts])
    for name, scores in (("itm", margins.numpy()), ("itc", cosines.numpy())):
        per_class = average_precision(scores.T, every.T)
        figures[name] = {
            "rank_map": float(np.nanmean(average_precision(scores, every))),
            "class_map": float(np.nanmean(per_class)),
            **{f"swap_{k}": v for k, v in swap_accuracy(scores, every, grammar.facts).items()},
        }
        if name == "itm":
            figures["class_ap"] = {
                " ".join(f): round(float(ap), 4) for f, ap in zip(grammar.facts, per_class, strict=True)
            }
    prior = np.broadcast_to(every.mean(0), every.shape)
    figures["no_image_prior"] = {"rank_map": float(np.nanmean(average_precision(prior, every)))}

    said = [grammar.parse_caption(text) for text in generate(captioner, processor, images, captions.CAPTION_PREFIX)]
    figures["caption"] = precision_recall(said, every, primary)
    interacting = np.array([verb != NO_INTERACTION for verb, _ in grammar.facts])
    listed = [grammar.parse_listing(text) for text in generate(captioner, processor, images, captions.LIST_PREFIX)]
    figures["list"] = precision_recall(listed, every, every & interacting)
    figures["yes_no"] = yes_no_accuracy(captioner, processor, images, every, grammar)
    return figures


def yes_no_accuracy(
    captioner: PicoBlipForConditionalGeneration,
    processor: BlipProcessor,
    images: Tensor,
    every: np.ndarray,
    grammar: Grammar,
) -> dict[str, float]:
    """One true question an image, and one with a verb that does not hold for that object (another object if none)."""
    rng = np.random.default_rng(0)
    interacting = np.array([verb != NO_INTERACTION for verb, _ in grammar.facts])
    objects = np.array([obj for _, obj in grammar.facts])
    rows, true_facts, false_facts = [], [], []
    for row, true in enumerate(every & interacting):
        if true.any():
            h = rng.choice(np.flatnonzero(true))
            wrong = interacting & ~every[row] & (objects == objects[h])
            rows.append(row)
            true_facts.append(h)
            false_facts.append(rng.choice(np.flatnonzero(wrong if wrong.any() else interacting & ~every[row])))
    asked = images[torch.tensor(rows)]
    yes, no = (
        yes_margins(captioner, processor, asked, [captions.question(*grammar.facts[h]) for h in facts]).numpy()
        for facts in (true_facts, false_facts)
    )
    return {"accuracy": float(((yes > 0).mean() + (no <= 0).mean()) / 2), "true_yes": float((yes > 0).mean()),
            "false_no": float((no <= 0).mean()), "pairwise": float((yes > no).mean())}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure the pico teacher on unseen scenes.")
    parser.add_argument(
        "--teacher", type=Path, default=SHIPPED, help="folder with itm/ and caption/ (default: the shipped one)"
    )
    parser.add_argument("--out", type=Path, help="default: heldout.json in that folder")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    figures = evaluate(options.teacher)
    text = json.dumps(figures, indent=2)
    (options.out or options.teacher / "heldout.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
