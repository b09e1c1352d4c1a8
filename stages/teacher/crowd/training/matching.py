"""Trains the crowd's matching teacher: ``python -m hoi_distill.stages.teacher.crowd.training.matching --out DIR``.

It is a BLIP of the pico teacher's make at 256 pixels. It is told which interactions an image shows, and not where. Its vision
tower is the crowd's and stays as it is, so that each scene goes through it once. Its text encoder starts from scratch. Lengths
are counted in steps: one thread gives the same weights on the same machine.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoi_distill.stages.data.crowd.classes import HOIS, crowd_vocabulary
from hoi_distill.stages.data.crowd.layout import SIZE
from hoi_distill.stages.teacher.crowd.training import corpus
from hoi_distill.stages.teacher.pico.evaluation.blip import pixel_values
from hoi_distill.stages.teacher.pico.modeling.blip import PicoBlipForImageTextRetrieval, build_config, build_processor
from hoi_distill.stages.teacher.pico.modeling.clip import PicoClipModel
from hoi_distill.stages.teacher.pico.training.lessons import PromptSampler, batches
from hoi_distill.stages.teacher.pico.training.matching import match_loss
from hoi_distill.stages.teacher.pico.training.run import Log, begin, descend, one_cycle, save_checkpoint, write_recipe

TOWER = Path(__file__).parents[1] / "tower"


@dataclass(frozen=True)
class MatchingRecipe:
    """Everything the weights depend on besides the corpus and the tower."""

    seed: int = 0
    scenes: int = 7000
    steps: int = 4000
    batch: int = 16
    lr: float = 1.5e-3
    prompts: int = 8
    other_verb: float = 0.3
    other_object: float = 0.45


def build_model(tower: PicoClipModel, vocab_size: int) -> PicoBlipForImageTextRetrieval:
    """A small BLIP with a CLIP's tower and a new text encoder.

    Args:
        tower: Its convolutions and layers are taken.
        vocab_size: Of the tokenizer.
    """
    sizes = {"width": tower.vision_embed_dim, "text_width": 96, "text_layers": 2}
    model = PicoBlipForImageTextRetrieval(build_config(vocab_size, image_size=SIZE, **sizes))
    model.vision_model.load_state_dict(of_blip(tower.vision_model.state_dict()))
    model.vision_model.requires_grad_(requires_grad=False)
    return model


def of_blip(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP tower's weights under the names of BLIP's, which has no norm before the first layer: that one is left out."""
    renamed = {}
    for name, value in tower.items():
        if name.startswith("pre_layrnorm") or ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            parts = [tower[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            renamed[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
        elif name == "embeddings.class_embedding":
            renamed[name] = value[None, None]
        elif name == "embeddings.position_embedding.weight":
            renamed["embeddings.position_embedding"] = value[None]
        else:
            renamed[name.replace(".out_proj.", ".projection.")] = value
    return renamed


@torch.no_grad()
def seen(model: PicoBlipForImageTextRetrieval, processor: Any, pixels: np.ndarray) -> Tensor:
    """The tower's last hidden states of scenes, float16 ``[N, 257, 144]``."""
    parts = []
    for start in range(0, len(pixels), 20):
        images = pixel_values(processor, pixels[start : start + 20])
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(model.vision_model(images).last_hidden_state.half())
    return torch.cat(parts)


def train(recipe: MatchingRecipe, out: Path) -> None:
    """Train and save to ``out``."""
    prompts = crowd_vocabulary().prompts()
    processor = build_processor({word for prompt in prompts for word in prompt.split()}, SIZE)
    ids = processor.tokenizer(list(prompts))["input_ids"]
    sampler = PromptSampler(HOIS, ids, other_verb=recipe.other_verb, other_object=recipe.other_object)
    model = build_model(PicoClipModel.from_pretrained(TOWER), len(processor.tokenizer)).eval()
    shown = corpus.TAUGHT.interactions()[: recipe.scenes]
    states = seen(model, processor, corpus.load(corpus.TAUGHT).pixels[: recipe.scenes])
    rng = np.random.default_rng(recipe.seed)
    order = batches(len(shown), recipe.batch, rng)
    parameters = [*model.text_encoder.parameters(), *model.itm_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01, betas=(0.9, 0.98))
    log = Log(out / "train.jsonl")
    model.text_encoder.train()
    for step in range(recipe.steps):
        index = next(order)
        asked, matches = sampler.prompts(shown[index], recipe.prompts, rng)
        with torch.autocast("cpu", torch.bfloat16):
            loss = match_loss(model, states[index].float(), asked, matches)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * one_cycle(step, recipe.steps, 100)
        descend(optimizer, {"itm": loss}, parameters, 2.0)
        log.add({"itm": loss})
        if (step + 1) % 50 == 0:
            log.flush("matching", step + 1)
    save_checkpoint(model.eval(), processor, out)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the crowd's matching teacher on images and their interactions.")
    recipe, out, _ = begin(parser, MatchingRecipe, argv)
    train(recipe, out)
    write_recipe(out, recipe)


if __name__ == "__main__":
    main()
