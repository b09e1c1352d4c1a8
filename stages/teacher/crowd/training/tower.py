"""Trains the crowd's tower: ``python -m hoi_distill.stages.teacher.crowd.training.tower --out DIR``.

It is a CLIP of the pico CLIP's make at 256 pixels. Its cells learn what they show, where the parts of the body in them are and
how that is dressed, by linear heads that are thrown away; the whole image learns to agree with its caption (CLIP's loss).
Neither tells of an interaction. Lengths are counted in steps: one thread gives the same weights on the same machine.

A second turn (``--start FOLDER --fine 1``) goes on from a checkpoint with new heads. There what is small weighs more: hands,
telescopes, ropes, water.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertTokenizer

from hoi_distill.stages.data.crowd.layout import SIZE
from hoi_distill.stages.data.crowd.texts import COLORS
from hoi_distill.stages.teacher.crowd.training import corpus
from hoi_distill.stages.teacher.crowd.training.dense import POSTURES, SEEN, VECTORS, DenseLabels, mirrored
from hoi_distill.stages.teacher.pico.modeling.blip import build_processor as build_blip_processor
from hoi_distill.stages.teacher.pico.modeling.clip import PicoClipModel, build_model, build_processor
from hoi_distill.stages.teacher.pico.training.lessons import batches
from hoi_distill.stages.teacher.pico.training.run import Log, begin, descend, one_cycle, save_checkpoint, write_recipe

FINE = ("near_hand", "far_hand", "telescope", "rope", "water")
"""What weighs more in a second turn: of the labels of what is seen, and of vectors."""
FINE_WEIGHT = 5.0


@dataclass(frozen=True)
class TowerRecipe:
    """Everything the weights depend on besides the corpus and the checkpoint that training goes on from."""

    seed: int = 0
    batch: int = 16
    steps: int = 1500
    lr: float = 2e-3
    fine: int = 0


class TowerLearner(nn.Module):
    """The model, and the linear heads that only its training needs.

    Args:
        tokenizer: Of the captions.
        fine: Whether what is small weighs more.

    Attributes:
        clip: The model.
    """

    def __init__(self, tokenizer: BertTokenizer, *, fine: bool = False) -> None:
        super().__init__()
        more = dict.fromkeys(FINE, FINE_WEIGHT if fine else 1.0)
        self._seen_weights = torch.tensor([more.get(name, 1.0) for name in SEEN])
        self._vector_weights = torch.tensor([more.get(name, 1.0) for name in VECTORS]).repeat_interleave(2)
        self.clip: PicoClipModel = build_model(tokenizer, SIZE)
        self.clip.set_attn_implementation("eager")  # its gradient is faster on a CPU than the fused kernel's
        self._sizes = (len(SEEN), 2, 2 * len(VECTORS), len(POSTURES), len(COLORS))
        self.heads = nn.Linear(self.clip.vision_embed_dim, sum(self._sizes))
        nn.init.constant_(self.heads.bias[: len(SEEN)], -2.0)  # most cells show none of it
        for module in self.stem.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    @property
    def stem(self) -> nn.Module:
        """The convolutions of the vision tower."""
        return self.clip.vision_model.embeddings.patch_embedding

    def losses(self, images: Tensor, labels: DenseLabels, texts: Tensor) -> dict[str, Tensor]:
        """What cells say of themselves, and captions against each other.

        Args:
            images: float ``[B, 3, 256, 256]``, normalised.
            labels: Of the images.
            texts: token ids ``int64 [B, L]`` of the captions, zero where padded.
        """
        tower = self.clip.vision_model
        states = tower.post_layernorm(tower(pixel_values=images).last_hidden_state)
        said = self.heads(states[:, 1:]).float().split(self._sizes, -1)
        seen, line, body, posture, shirt = (
            torch.from_numpy(getattr(labels, field.name)).flatten(1, 2) for field in fields(DenseLabels)
        )
        on_line, on_body = line.any(-1), posture >= 0
        image = F.normalize(self.clip.visual_projection(states[:, 0]).float(), dim=-1)
        answers = self.clip.get_text_features(input_ids=texts, attention_mask=(texts > 0).long())
        agreement = self.clip.logit_scale.exp() * image @ F.normalize(answers.pooler_output.float(), dim=-1).T
        own = torch.arange(len(images))
        off = F.smooth_l1_loss(said[2][on_body], body[on_body].float(), beta=0.1, reduction="none")
        return {
            "seen": (self._seen_weights * F.binary_cross_entropy_with_logits(said[0], seen.float(), reduction="none"))
            .sum(-1)
            .mean(),
            "line": F.smooth_l1_loss(said[1][on_line], line[on_line].float(), beta=0.2),
            "body": 10 * (self._vector_weights * off).mean(),
            "posture": 0.5 * F.cross_entropy(said[3][on_body], posture[on_body].long()),
            "shirt": 0.2 * F.cross_entropy(said[4][on_body], shirt[on_body].long()),
            "caption": 0.1 * (F.cross_entropy(agreement, own) + F.cross_entropy(agreement.T, own)) / 2,
        }


class Lessons:
    """A corpus part with its captions tokenized."""

    def __init__(self, part: corpus.CorpusPart, tokenizer: BertTokenizer, longest: int) -> None:
        self._corpus = corpus.load(part)
        self._ids = tokenizer(self._corpus.captions, truncation=True, max_length=longest)["input_ids"]

    def __len__(self) -> int:
        return len(self._ids)

    def batch(self, index: np.ndarray, mean: Tensor, std: Tensor, *, flip: bool) -> tuple[Tensor, DenseLabels, Tensor]:
        """Images (channels last), labels and captions of a step, all mirrored or none: no caption names a side."""
        pixels = np.stack([self._corpus.pixels[i] for i in index])
        labels = DenseLabels(*(getattr(self._corpus.labels, field.name)[index] for field in fields(DenseLabels)))
        if flip:
            pixels, labels = pixels[:, :, ::-1].copy(), mirrored(labels)
        images = ((torch.from_numpy(pixels).float() - mean * 255) / (std * 255)).permute(0, 3, 1, 2)
        ids = nn.utils.rnn.pad_sequence([torch.tensor(self._ids[i]) for i in index], batch_first=True)
        return images, labels, ids


def vocabulary_words(captions: list[str]) -> set[str]:
    """Every word of the captions."""
    return {word.strip(",:;") for caption in captions for word in caption.split()}


def train(recipe: TowerRecipe, out: Path, start: Path | None = None) -> None:
    """Train and save to ``out``; ``start`` is the checkpoint to go on from."""
    tokenizer = build_blip_processor(vocabulary_words(corpus.load(corpus.PROBED).captions)).tokenizer
    learner = TowerLearner(tokenizer, fine=bool(recipe.fine))
    if start is not None:
        learner.clip.load_state_dict(PicoClipModel.from_pretrained(start).state_dict())
    learner.stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    processor = build_processor(tokenizer, SIZE)
    mean, std = (torch.tensor(getattr(processor.image_processor, key)) for key in ("image_mean", "image_std"))
    data = Lessons(corpus.TAUGHT, tokenizer, learner.clip.text_model.config.max_position_embeddings)
    rng = np.random.default_rng(recipe.seed)
    order = batches(len(data), recipe.batch, rng)
    optimizer = torch.optim.AdamW(learner.parameters(), weight_decay=0.01, betas=(0.9, 0.98))
    log = Log(out / "train.jsonl")
    learner.train()
    for step in range(recipe.steps):
        images, labels, texts = data.batch(next(order), mean, std, flip=rng.random() < 0.5)
        with torch.autocast("cpu", torch.bfloat16):
            losses = learner.losses(images, labels, texts)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * one_cycle(step, recipe.steps, 100)
        descend(optimizer, losses, learner.parameters(), 5.0)
        log.add(losses)
        if (step + 1) % 50 == 0:
            log.flush("tower", step + 1)
    save_checkpoint(learner.clip.eval(), processor, out)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train the crowd's tower on captions and cells, without interactions.")
    parser.add_argument("--start", type=Path, help="the checkpoint of a first turn, to go on from")
    recipe, out, options = begin(parser, TowerRecipe, argv)
    train(recipe, out, options["start"])
    write_recipe(out, recipe)


if __name__ == "__main__":
    main()
