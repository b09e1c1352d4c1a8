"""Trains the pico teacher on captioned images: ``python -m hoi_distill.stages.teacher.pico.training.blip --out DIR``.

Phase A, the stem: convolutions and a tag head (verbs, objects and facts named in the caption), pooled over the grid by
log-sum-exp, first on plain images, then on scenes. Phase B, jointly: image-text matching with hard negatives, the
language model (captions, lists, yes/no), image-text contrast, and the tags again. Lengths are counted in steps, not
seconds: the same command gives the same weights on the same machine with one thread.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipProcessor
from typing_extensions import override

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.teacher.pico.modeling.blip import (
    PicoBlipForConditionalGeneration,
    PicoBlipForImageTextRetrieval,
    build_config,
    build_processor,
)
from hoi_distill.stages.teacher.pico.training import corpus
from hoi_distill.stages.teacher.pico.training.captions import Grammar
from hoi_distill.stages.teacher.pico.training.lessons import (
    Data,
    Sampler,
    TokenizedSentences,
    batches,
    vocabulary_words,
)
from hoi_distill.stages.teacher.pico.training.matching import match_loss
from hoi_distill.stages.teacher.pico.training.packing import pack
from hoi_distill.stages.teacher.pico.training.run import Log, begin, descend, one_cycle, save_checkpoint, write_recipe
from hoi_distill.stages.teacher.pico.training.tags import TagLearner


@dataclass(frozen=True)
class BlipRecipe:
    """Everything the weights depend on besides the corpus."""

    seed: int = 0
    stem_plain_steps: int = 800
    stem_scene_steps: int = 2000
    stem_batch: int = 64
    stem_lr: float = 2e-3
    joint_steps: int = 3500
    joint_batch: int = 32
    joint_lr: float = 1e-3
    prompts: int = 8
    questions: int = 3
    long_tailed: bool = False


class BlipLearner(TagLearner):
    """Both checkpoints around one vision tower.

    As in BLIP, matching encoder and captioning decoder share all but self-attention while they learn.
    """

    def __init__(self, vocab_size: int, grammar: Grammar) -> None:
        super().__init__()
        config = build_config(vocab_size)
        self.itm = PicoBlipForImageTextRetrieval(config)
        self.captioner = PicoBlipForConditionalGeneration(config)
        self.captioner.vision_model = self.itm.vision_model
        encoder, decoder = self.itm.text_encoder, self.captioner.text_decoder
        decoder.bert.embeddings = encoder.embeddings
        decoder.cls.predictions.decoder.weight = encoder.embeddings.word_embeddings.weight
        for mine, theirs in zip(decoder.bert.encoder.layer, encoder.encoder.layer, strict=True):
            mine.crossattention = theirs.crossattention
            mine.intermediate, mine.output = theirs.intermediate, theirs.output
        self.add_tags(self.itm.vision_model.embeddings.embed_dim, grammar)
        self.contrast_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.contrast_bias = nn.Parameter(torch.tensor(-3.0))

    @property
    @override
    def stem(self) -> nn.Module:
        """Of the vision tower that both checkpoints share."""
        return self.itm.vision_model.embeddings.patch_embedding


def train_stem(teacher: BlipLearner, recipe: BlipRecipe, plain: Data, scenes: Callable[[], Data], log: Log) -> None:
    """Phase A. ``scenes`` is called when the curriculum is over."""
    rng = np.random.default_rng([recipe.seed, 1])
    parameters = [*teacher.stem.parameters(), *teacher.tags.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.stem_lr, weight_decay=0.01)
    steps = recipe.stem_plain_steps + recipe.stem_scene_steps
    data, order = plain, batches(len(plain.pixels), recipe.stem_batch, rng)
    teacher.train()
    for step in range(steps):
        if step == recipe.stem_plain_steps:
            data = scenes()
            order = batches(len(data.pixels), recipe.stem_batch, rng)
        for group in optimizer.param_groups:
            group["lr"] = recipe.stem_lr * max(0.05, one_cycle(step, steps, 50))
        index = next(order)
        with torch.autocast("cpu", torch.bfloat16):
            cells = teacher.stem(data.images(index, rng))
            loss = teacher.tag_loss(cells, torch.from_numpy(data.every[index]).float())
        descend(optimizer, {"tag": loss}, parameters, 5.0)
        log.add({"tag": loss})
        if (step + 1) % 50 == 0:
            log.flush("stem", step + 1)


def joint_losses(
    teacher: BlipLearner,
    sampler: Sampler,
    data: Data,
    *,
    index: np.ndarray,
    recipe: BlipRecipe,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    """The five losses of phase B on the images of ``index``, int64 ``[B]``."""
    itm, captioner = teacher.itm, teacher.captioner
    embeddings = itm.vision_model.embeddings
    every = torch.from_numpy(data.every[index]).float()
    cells: list[Tensor] = []
    hook = embeddings.patch_embedding.register_forward_hook(lambda _m, _i, out: cells.append(out))
    states = itm.vision_model(data.images(index, rng)).last_hidden_state
    hook.remove()

    prompts, matches = sampler.prompts(data.every[index], recipe.prompts, rng)
    matching = match_loss(itm, states, prompts, matches)

    asked, sentences, words = sampler.language(data, index, recipe.questions, rng)
    logits = captioner.text_decoder(
        asked.ids, attention_mask=asked.mask(causal=True), position_ids=asked.positions, encoder_hidden_states=states
    ).logits.float()  # fmt: skip

    alone = pack([[ids] for ids in sampler.texts.prompts])
    unimodal = itm.text_encoder(alone.ids, attention_mask=alone.mask(causal=False)).last_hidden_state[:, 0]
    text = F.normalize(itm.text_proj(unimodal).float(), dim=-1)
    image = F.normalize(itm.vision_proj(states[:, 0]).float(), dim=-1)
    contrast = teacher.contrast_scale.exp() * image @ text.T + teacher.contrast_bias
    return {
        "itm": matching,
        "lm": F.cross_entropy(logits.flatten(0, 1), sentences.flatten()),
        "yn": F.cross_entropy(logits.flatten(0, 1), words.flatten()) * 2,  # half of its tokens are the trivial [SEP]
        "itc": F.binary_cross_entropy_with_logits(contrast, every, reduction="none").sum(1).mean() / 10,
        "tag": teacher.tag_loss(cells[0], every) / 10,
    }


def train_joint(
    teacher: BlipLearner, sampler: Sampler, data: Data, *, recipe: BlipRecipe, log: Log, snapshot: Callable[[], None]
) -> None:
    """Phase B. ``snapshot`` is called now and then, so that a long run can be looked at before its end."""
    rng = np.random.default_rng([recipe.seed, 2])
    slow = {id(p) for p in teacher.stem.parameters()}
    parameters = list(teacher.parameters())
    groups = [
        {"params": [p for p in parameters if id(p) in slow], "scale": 0.5},
        {"params": [p for p in parameters if id(p) not in slow], "scale": 1.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.joint_lr, weight_decay=0.01, betas=(0.9, 0.98))
    order = batches(len(data.pixels), recipe.joint_batch, rng)
    teacher.train()
    for step in range(recipe.joint_steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.joint_lr * group["scale"] * one_cycle(step, recipe.joint_steps, 100)
        with torch.autocast("cpu", torch.bfloat16):
            losses = joint_losses(teacher, sampler, data, index=next(order), recipe=recipe, rng=rng)
        descend(optimizer, losses, parameters, 2.0)
        log.add(losses)
        if (step + 1) % 25 == 0:
            log.flush("joint", step + 1)
        if (step + 1) % 500 == 0:
            snapshot()


def save(teacher: BlipLearner, processor: BlipProcessor, out: Path) -> None:
    """Write the checkpoints ``out/itm`` and ``out/caption``."""
    save_checkpoint(teacher.itm, processor, out / "itm")
    save_checkpoint(teacher.captioner, processor, out / "caption")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the pico BLIP teacher on image-level captions.")
    parser.add_argument("--stem", type=Path, help="resume from this stem.safetensors instead of training phase A")
    parser.add_argument("--long-tailed", action="store_true", help="train on the world's own long tail (an ablation)")
    recipe, out, own = begin(parser, BlipRecipe, argv)
    log, stem = Log(out / "train.jsonl"), own["stem"]

    grammar = Grammar([(str(verb), str(obj)) for verb, obj in HOIS])
    processor = build_processor(vocabulary_words(grammar))
    texts = TokenizedSentences(processor, grammar)
    teacher = BlipLearner(len(processor.tokenizer), grammar)
    teacher.stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain_part, scenes_part = corpus.PLAIN, corpus.SCENES
    if recipe.long_tailed:
        plain_part, scenes_part = corpus.LONG_TAILED_PLAIN, corpus.LONG_TAILED_SCENES
    if stem is None:
        plain = Data(plain_part, texts, grammar, processor)
        train_stem(teacher, recipe, plain, lambda: Data(scenes_part, texts, grammar, processor), log)
        trained = {f"stem.{k}": v for k, v in teacher.stem.state_dict().items()}
        trained |= {f"tags.{k}": v for k, v in teacher.tags.state_dict().items()}
        save_file({k: v.contiguous() for k, v in trained.items()}, out / "stem.safetensors")
    else:
        trained = load_file(stem)
        for name, module in (("stem", teacher.stem), ("tags", teacher.tags)):
            own = {key.removeprefix(f"{name}."): v for key, v in trained.items() if key.startswith(f"{name}.")}
            module.load_state_dict(own)
    scenes = Data(scenes_part, texts, grammar, processor)
    train_joint(
        teacher,
        Sampler(grammar, texts),
        scenes,
        recipe=recipe,
        log=log,
        snapshot=lambda: save(teacher, processor, out),
    )
    save(teacher.eval(), processor, out)
    write_recipe(out, recipe)


if __name__ == "__main__":
    main()
