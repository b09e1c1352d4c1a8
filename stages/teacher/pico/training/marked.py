"""Trains the pico teacher that is asked about pairs: ``python -m hoi_distill.stages.teacher.pico.training.marked --out DIR``.

It starts from the shipped captioner and keeps its vision tower. Every scene is drawn once, so nothing is kept of it. Lengths
are counted in steps, not seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoProcessor, BlipProcessor

from hoi_distill.stages.data.coco import COCO_OBJECTS, OBJECT_INDEX
from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.data.pico.render import SIZE, Scene, render_scene
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.evaluate.metrics.localisation import localisation_area
from hoi_distill.stages.ops import boxes as box_ops
from hoi_distill.stages.ops.instances import HUMAN
from hoi_distill.stages.teacher.blip.question_decoder import answer_logits, padded
from hoi_distill.stages.teacher.pico.modeling.blip import PicoBlipForConditionalGeneration, load_strict
from hoi_distill.stages.teacher.pico.modeling.marked import PicoBlipForPairQuestions
from hoi_distill.stages.teacher.pico.training.captions import Grammar
from hoi_distill.stages.teacher.pico.training.lessons import TokenizedSentences
from hoi_distill.stages.teacher.pico.training.run import (
    AveragedWeights,
    Log,
    begin,
    descend,
    one_cycle,
    save_checkpoint,
    write_recipe,
)

START = Path(__file__).parents[1] / "caption"
"""Where the weights start from."""
FIRST_SEED = 1_800_000_000
"""Scenes are drawn as they are needed, from this seed on: no student's world and no other corpus reaches it."""
TEMPERS = (0.2, 0.35)
"""As in the captioner's corpus, taken in turn."""
JITTER = 0.06
"""Standard deviation of an edge, as a share of the box's side; cut at twice that."""
APART = 0.4
"""A box in which nothing is must overlap each true one by less."""


@dataclass(frozen=True)
class MarkedRecipe:
    """Everything the weights depend on besides the captioner."""

    seed: int = 0
    batch: int = 32
    questions: int = 12
    steps: int = 600
    """Over which the learning rate falls to zero."""
    stop: int = 240
    """The step at which training ends."""
    snapshot: int = 60
    """Steps from one saving to the next; what the first one saves stays in ``first/``."""
    lr: float = 1e-3
    gamma_lr: float = 3e-2
    average: float = 0.98
    without_marks: bool = False


@dataclass(frozen=True)
class AskedPair:
    """A question about a pair of one scene.

    Attributes:
        human: row of the person's box.
        object_: row of the object's box.
        hoi: the interaction that is asked for.
        yes: whether it is so.
    """

    human: int
    object_: int
    hoi: int
    yes: bool


@dataclass(frozen=True)
class Lesson:
    """B scenes with Q questions each.

    Attributes:
        pixels: uint8 ``[B, 128, 128, 3]``.
        boxes: float32 ``[B, Q, 2, 4]``, human and object, xyxy fractions.
        hoi: int64 ``[B, Q]``.
        yes: bool ``[B, Q]``.
    """

    pixels: np.ndarray
    boxes: np.ndarray
    hoi: np.ndarray
    yes: np.ndarray


class Questions:
    """Asks about the pairs of scenes.

    Args:
        rng: draws what is asked, and where the boxes are.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.hois_of: dict[int, list[int]] = {}
        for hoi, (verb, name) in enumerate(HOIS):
            if verb != NO_INTERACTION:
                self.hois_of.setdefault(OBJECT_INDEX[name], []).append(hoi)

    def boxes(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """A scene's boxes as a detector might see them, float ``[n, 4]`` pixels, and their labels ``[n]``: a person and an object
        follow of a kind that is there, where nothing of it is."""
        side = np.tile(scene.boxes[:, 2:] - scene.boxes[:, :2], 2)
        moved = np.clip(self.rng.normal(0, JITTER, scene.boxes.shape), -2 * JITTER, 2 * JITTER)
        boxes, labels = [*np.clip(scene.boxes + moved * side, 0, SIZE)], scene.objects.tolist()
        for label in (HUMAN, int(self.rng.choice(scene.objects[scene.objects != HUMAN]))):
            corner, extent = self.rng.uniform(0, 0.85 * SIZE, 2), self.rng.uniform(8, 50, 2)
            empty = np.clip(np.concatenate((corner, corner + extent)), 0, SIZE)
            if box_ops.iou_matrix(empty[None], scene.boxes[scene.objects == label]).max() < APART:
                boxes.append(empty)
                labels.append(label)
        return np.array(boxes, np.float32), np.array(labels)

    def every(self, scene: Scene, labels: np.ndarray) -> list[AskedPair]:
        """All that can be asked about boxes of these labels."""
        true = {
            (human, object_, HOIS.index((verb, COCO_OBJECTS[scene.objects[object_]])))
            for human, object_, verbs in scene.pairs
            for verb in verbs
        }
        return [
            AskedPair(human, object_, hoi, (human, object_, hoi) in true)
            for human in np.flatnonzero(labels == HUMAN).tolist()
            for object_ in np.flatnonzero(labels != HUMAN).tolist()
            for hoi in self.hois_of[int(labels[object_])]
        ]

    def chosen(self, scene: Scene, labels: np.ndarray, count: int) -> list[AskedPair]:
        """What is asked: a quarter is true, a quarter is another verb of an annotated pair, and half is a true verb of another
        pair. Where there is none such, it is anything false."""
        every = self.every(scene, labels)
        shown = {each.hoi for each in every if each.yes}
        known = {(human, object_) for human, object_, _ in scene.pairs}
        false = [each for each in every if not each.yes]
        true = [each for each in every if each.yes] or false
        other_verb = [each for each in false if (each.human, each.object_) in known] or false
        other_pair = [each for each in false if each.hoi in shown] or false
        pools = (true, other_verb, other_pair, other_pair)
        return [pools[turn % 4][self.rng.integers(len(pools[turn % 4]))] for turn in range(count)]

    def lesson(self, seeds: range, count: int) -> Lesson:
        """``count`` questions about each scene, half of which are mirrored."""
        pixels, boxes, asked = [], [], []
        for seed in seeds:
            scene = render_scene(seed, temper=TEMPERS[seed % len(TEMPERS)])
            seen, labels = self.boxes(scene)
            questions = self.chosen(scene, labels, count)
            mirrored = self.rng.random() < 0.5
            seen = (box_ops.flip(seen, SIZE) if mirrored else seen) / SIZE
            pixels.append(scene.image[:, ::-1] if mirrored else scene.image)
            boxes.append([(seen[each.human], seen[each.object_]) for each in questions])
            asked.append([(each.hoi, each.yes) for each in questions])
        hoi, yes = np.moveaxis(np.array(asked), -1, 0)
        return Lesson(np.stack(pixels), np.array(boxes, np.float32), hoi, yes.astype(bool))


class PairLearner:
    """A captioner that learns to answer about pairs.

    Args:
        model: with marks or without; its vision tower stays.
        processor: the captioner's.
    """

    def __init__(self, model: PicoBlipForConditionalGeneration, processor: BlipProcessor) -> None:
        self.model, image = model.eval(), processor.image_processor
        self.model.vision_model.requires_grad_(requires_grad=False).to(memory_format=torch.channels_last)
        self.texts = TokenizedSentences(processor, Grammar([(str(verb), str(name)) for verb, name in HOIS]))
        self.mean, self.std = torch.tensor(image.image_mean) * 255, torch.tensor(image.image_std) * 255

    def logits(self, lesson: Lesson) -> Tensor:
        """float ``[B, Q, vocabulary]`` of the answers' first tokens."""
        pixels = ((torch.from_numpy(lesson.pixels).float() - self.mean) / self.std).permute(0, 3, 1, 2)
        with torch.no_grad():
            states = self.model.vision_model(pixels).last_hidden_state
        ids, lengths = padded([[self.texts.questions[hoi] or [] for hoi in own] for own in lesson.hoi.tolist()])
        if isinstance(self.model, PicoBlipForPairQuestions):
            return self.model.answers(states, ids, lengths, torch.from_numpy(lesson.boxes))
        return answer_logits(self.model.text_decoder, states, ids, lengths)

    def loss(self, logits: Tensor, lesson: Lesson) -> Tensor:
        """Cross-entropy of the words yes and no."""
        word = torch.where(torch.from_numpy(lesson.yes), self.texts.yes, self.texts.no)
        return F.cross_entropy(logits.flatten(0, 1).float(), word.flatten())

    def margins(self, logits: Tensor) -> np.ndarray:
        """float32 ``[B, Q]``: how much likelier yes is than no, in log-odds."""
        found: np.ndarray = (logits[..., self.texts.yes] - logits[..., self.texts.no]).detach().float().numpy()
        return found

    def localisation(self, logits: Tensor, lesson: Lesson) -> float:
        """The localisation AUC among the questions of each scene, which was never seen before; 0.5 where there is none."""
        group = np.arange(len(lesson.hoi))[:, None] * len(HOIS) + lesson.hoi
        found, _ = localisation_area(self.margins(logits).ravel(), lesson.yes.ravel(), group.ravel())
        return 0.5 if found is None else found


def marked_captioner(folder: Path) -> PicoBlipForPairQuestions:
    """The captioner of a folder with new marks."""
    captioner = load_strict(PicoBlipForConditionalGeneration, folder)
    model = PicoBlipForPairQuestions(captioner.config)
    model.load_state_dict(captioner.state_dict(), strict=False)  # all but the marks
    return model


def lessons(recipe: MarkedRecipe) -> Iterator[Lesson]:
    """Endless batches of new scenes."""
    questions = Questions(np.random.default_rng([recipe.seed, 6]))
    seed = FIRST_SEED
    while True:
        yield questions.lesson(range(seed, seed + recipe.batch), recipe.questions)
        seed += recipe.batch


def train(learner: PairLearner, recipe: MarkedRecipe, log: Log, save: Callable[[nn.Module, int], None]) -> None:
    """AdamW over the beginning of one cycle. ``save`` gets the running average of the weights now and then, and at the end."""
    model = learner.model
    learning = {name: each for name, each in model.named_parameters() if each.requires_grad}
    gamma = [each for name, each in learning.items() if name.endswith("gamma")]
    others = [each for name, each in learning.items() if not name.endswith("gamma")]
    groups = [{"params": others, "top": recipe.lr}, {"params": gamma, "top": recipe.gamma_lr, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=0.01, betas=(0.9, 0.98))
    averaged, data = AveragedWeights(model, recipe.average), lessons(recipe)
    for step in range(recipe.stop):
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * max(0.02, one_cycle(step, recipe.steps, 30))
        lesson = next(data)
        with torch.autocast("cpu", torch.bfloat16):
            logits = learner.logits(lesson)
        losses = {"answer": learner.loss(logits, lesson)}
        descend(optimizer, losses, others + gamma, 2.0)
        averaged.update(model, step)
        log.add(losses | {"localisation": torch.tensor(learner.localisation(logits, lesson))})
        if (step + 1) % 10 == 0:
            log.flush("pairs", step + 1)
        if (step + 1) % recipe.snapshot == 0 or step + 1 == recipe.stop:
            save(averaged.model, step + 1)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description="Teach the pico captioner to answer about pairs whose boxes it is shown."
    )
    parser.add_argument("--without-marks", action="store_true", help="show it no box (a control)")
    recipe, out, _ = begin(parser, MarkedRecipe, argv)
    processor = AutoProcessor.from_pretrained(START)
    model = load_strict(PicoBlipForConditionalGeneration, START) if recipe.without_marks else marked_captioner(START)

    def save(averaged: Any, step: int) -> None:
        averaged.vision_model.load_state_dict(model.vision_model.state_dict())  # averaging turns a zero's sign
        save_checkpoint(averaged, processor, out / "first" if step == recipe.snapshot < recipe.stop else out)

    train(PairLearner(model, processor), recipe, Log(out / "train.jsonl"), save)
    write_recipe(out, recipe)


if __name__ == "__main__":
    main()
