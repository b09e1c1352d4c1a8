"""Trains the second pico teacher, a CLIP, on captioned pictures:
``python -m hoi_distill.stages.teacher.pico.training.clip --out DIR``.

Its supervision is the first teacher's: sentences of images, never a box. First the stem learns, with a head that
tags the verbs, objects and facts that the caption names; then both towers learn to agree: every image with its own
caption against the batch's others (CLIP's loss), and with the prompt of each fact (a sigmoid a pair, as in SigLIP:
several prompts hold of one image). Lengths are counted in steps: one thread gives the same weights on the same machine.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizer
from typing_extensions import override

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.teacher.pico.modeling.blip import build_processor as build_blip_processor
from hoi_distill.stages.teacher.pico.modeling.clip import PicoClipModel, build_model, build_processor
from hoi_distill.stages.teacher.pico.training import captions, corpus
from hoi_distill.stages.teacher.pico.training.captions import Grammar
from hoi_distill.stages.teacher.pico.training.lessons import batches, vocabulary_words
from hoi_distill.stages.teacher.pico.training.run import Log, begin, descend, one_cycle, save_checkpoint, write_recipe
from hoi_distill.stages.teacher.pico.training.tags import TagLearner

PLAIN = replace(corpus.PLAIN, first_seed=1_500_000_000, count=8_000)
SCENES = replace(corpus.SCENES, first_seed=1_600_000_000, count=24_000)
"""Scenes of its own: neither the students' nor the first teacher's."""


@dataclass(frozen=True)
class ClipRecipe:
    """Everything the weights depend on besides the corpus."""

    seed: int = 1
    batch: int = 64
    plain_steps: int = 500
    scene_steps: int = 900
    stem_lr: float = 2e-3
    joint_steps: int = 1600
    joint_lr: float = 1e-3


class Lessons:
    """One corpus part: images, the facts of their captions (bool ``[N, H]``) and the tokenized captions."""

    def __init__(self, part: corpus.CorpusPart, grammar: Grammar, tokenizer: BertTokenizer, longest: int) -> None:
        loaded = corpus.load(part)
        self.pixels = loaded.pixels
        self.facts = loaded.facts(grammar)[1]
        sentences = [text or captions.CAPTION_PREFIX for text in loaded.captions]
        self.ids = tokenizer(sentences, truncation=True, max_length=longest)["input_ids"]

    def images(self, index: np.ndarray, mean: Tensor, std: Tensor, rng: np.random.Generator) -> Tensor:
        """Normalised float ``[B, 3, 128, 128]``, channels last, half of them mirrored (no fact names a side)."""
        pixels = np.stack([self.pixels[i] for i in index])
        mirrored = rng.random(len(index)) < 0.5
        pixels[mirrored] = pixels[mirrored, :, ::-1]
        return ((torch.from_numpy(pixels).float() - mean * 255) / (std * 255)).permute(0, 3, 1, 2)


class ClipLearner(TagLearner):
    """The model and what only training needs: the tag head and the sigmoid loss's scale and bias."""

    def __init__(self, tokenizer: BertTokenizer, grammar: Grammar) -> None:
        super().__init__()
        self.clip: PicoClipModel = build_model(tokenizer)
        self.add_tags(self.clip.vision_embed_dim, grammar)
        self.scale, self.bias = nn.Parameter(torch.tensor(2.3)), nn.Parameter(torch.tensor(-3.0))

    @property
    @override
    def stem(self) -> nn.Module:
        """Of the vision tower."""
        return self.clip.vision_model.embeddings.patch_embedding

    def losses(self, images: Tensor, facts: Tensor, texts: Tensor) -> dict[str, Tensor]:
        """Tags, captions of the batch against each other, and the prompt of every fact.

        Args:
            images: float ``[B, 3, 128, 128]``, normalised.
            facts: float ``[B, H]``.
            texts: token ids ``int64 [B + H, L]`` of the captions and the prompts, zero where padded.
        """
        cells: list[Tensor] = []
        hook = self.stem.register_forward_hook(lambda _m, _i, out: cells.append(out))
        seen = F.normalize(self.clip.get_image_features(pixel_values=images).pooler_output.float(), dim=-1)
        hook.remove()
        said = self.clip.get_text_features(input_ids=texts, attention_mask=(texts > 0).long()).pooler_output
        said, asked = F.normalize(said.float(), dim=-1).split([len(images), facts.shape[1]])
        agreement = self.clip.logit_scale.exp() * seen @ said.T
        own = torch.arange(len(images))
        fits = self.scale.exp() * seen @ asked.T + self.bias
        return {
            "caption": (F.cross_entropy(agreement, own) + F.cross_entropy(agreement.T, own)) / 2,
            "prompt": F.binary_cross_entropy_with_logits(fits, facts, reduction="none").sum(1).mean() / 5,
            "tag": self.tag_loss(cells[0], facts) / 10,
        }


def padded(rows: list[list[int]]) -> Tensor:
    """``int64 [B, L]``, zeros at the end."""
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def train(recipe: ClipRecipe, out: Path) -> None:
    """Train and save to ``out``."""
    grammar = Grammar([(str(verb), str(obj)) for verb, obj in HOIS])
    tokenizer = build_blip_processor(vocabulary_words(grammar)).tokenizer
    learner = ClipLearner(tokenizer, grammar)
    learner.stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = build_processor(tokenizer).image_processor
    mean, std = torch.tensor(image.image_mean), torch.tensor(image.image_std)
    longest = learner.clip.text_model.config.max_position_embeddings
    prompts = tokenizer([captions.prompt(*fact) for fact in grammar.facts])["input_ids"]
    rng = np.random.default_rng(recipe.seed)
    data = Lessons(PLAIN, grammar, tokenizer, longest)
    order = batches(len(data.pixels), recipe.batch, rng)
    stem_parameters = [*learner.stem.parameters(), *learner.tags.parameters()]
    slow = {id(parameter) for parameter in learner.stem.parameters()}
    rest = [parameter for parameter in learner.parameters() if id(parameter) not in slow]
    groups = [{"params": list(learner.stem.parameters()), "scale": 0.5}, {"params": rest, "scale": 1.0}]
    stem_steps = recipe.plain_steps + recipe.scene_steps
    log = Log(out / "train.jsonl")
    learner.train()
    optimizer = torch.optim.AdamW([{"params": stem_parameters, "scale": 1.0}], weight_decay=0.01)
    for step in range(stem_steps + recipe.joint_steps):
        joint = step >= stem_steps
        if step == recipe.plain_steps:
            data = Lessons(SCENES, grammar, tokenizer, longest)
            order = batches(len(data.pixels), recipe.batch, rng)
        if step == stem_steps:
            optimizer = torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))
        index = next(order)
        facts = torch.from_numpy(data.facts[index]).float()
        with torch.autocast("cpu", torch.bfloat16):
            images = data.images(index, mean, std, rng)
            if joint:
                losses = learner.losses(images, facts, padded([*(data.ids[i] for i in index), *prompts]))
            else:
                losses = {"tag": learner.tag_loss(learner.stem(images), facts)}
        if joint:
            rate = recipe.joint_lr * one_cycle(step - stem_steps, recipe.joint_steps, 100)
        else:
            rate = recipe.stem_lr * max(0.05, one_cycle(step, stem_steps, 50))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        descend(optimizer, losses, [p for group in optimizer.param_groups for p in group["params"]], 5.0)
        log.add(losses)
        if (step + 1) % 50 == 0:
            log.flush("joint" if joint else "stem", step + 1)
    save_checkpoint(learner.clip.eval(), build_processor(tokenizer), out)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the second pico teacher, a CLIP, on image-level captions.")
    recipe, out, _ = begin(parser, ClipRecipe, argv)
    train(recipe, out)
    write_recipe(out, recipe)


if __name__ == "__main__":
    main()
