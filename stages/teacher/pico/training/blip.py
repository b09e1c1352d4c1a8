"""Trains the pico teacher on captioned pictures: ``python -m hoi_distill.stages.teacher.pico.training.blip --out DIR``.

Phase A, the stem: convolutions and a tag head (verbs, objects and facts named in the caption), pooled over the grid by
log-sum-exp, first on plain pictures, then on scenes. Phase B, jointly: image-text matching with hard negatives, the
language model (captions, lists, yes/no), image-text contrast, and the tags again. Lengths are counted in steps, not
seconds: the same command gives the same weights on the same machine with one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BlipProcessor

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.teacher.pico.modeling.blip import (
    PicoBlipForConditionalGeneration,
    PicoBlipForImageTextRetrieval,
    build_config,
    build_processor,
)
from hoi_distill.stages.teacher.pico.training import corpus
from hoi_distill.stages.teacher.pico.training.captions import Lexicon
from hoi_distill.stages.teacher.pico.training.lessons import Data, Sampler, Texts, batches, vocabulary_words
from hoi_distill.stages.teacher.pico.training.packing import pack


@dataclass(frozen=True)
class Recipe:
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


class Teacher(nn.Module):
    """Both checkpoints around one vision tower.

    As in BLIP, matching encoder and captioning decoder share all but self-attention while they learn.
    """

    def __init__(self, vocab_size: int, lexicon: Lexicon) -> None:
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
        width = self.itm.vision_model.embeddings.embed_dim
        self.membership = tag_membership(lexicon)
        self.tags = nn.Linear(width, self.membership.shape[1])
        nn.init.constant_(self.tags.bias, -6.0)  # 64 cells and few tags: start near "nothing is here"
        self.contrast_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.contrast_bias = nn.Parameter(torch.tensor(-3.0))
        for module in self.stem.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    @property
    def stem(self) -> nn.Module:
        return self.itm.vision_model.embeddings.patch_embedding

    def tag_loss(self, cells: Tensor, facts: Tensor) -> Tensor:
        """``cells [B, C, h, w]`` of the stem, ``facts`` float ``[B, H]``: summed binary cross-entropy a picture."""
        logits = self.tags(cells.flatten(2).transpose(1, 2)).float().logsumexp(1)
        targets = ((facts @ self.membership) > 0).float()
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1).mean()


def tag_membership(lexicon: Lexicon) -> Tensor:
    """Float ``[H, H + verbs + objects]``: which tags each fact implies."""
    verbs = sorted({verb for verb, _ in lexicon.facts})
    objects = sorted({obj for _, obj in lexicon.facts})
    verb = torch.tensor([verbs.index(v) for v, _ in lexicon.facts])
    obj = torch.tensor([objects.index(o) for _, o in lexicon.facts])
    parts = [torch.eye(len(lexicon.facts)), F.one_hot(verb, len(verbs)), F.one_hot(obj, len(objects))]
    return torch.cat([part.float() for part in parts], 1)


def one_cycle(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))


class Log:
    """Running means, printed and written to a fresh ``path`` as JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path, self._count = path, 0
        self._sums: dict[str, float] = {}
        path.write_text("")

    def add(self, **values: Tensor) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)

    def flush(self, phase: str, step: int) -> None:
        means = {name: round(total / self._count, 4) for name, total in self._sums.items()}
        if not all(math.isfinite(value) for value in means.values()):
            raise FloatingPointError(f"{phase} step {step}: loss is not finite: {means}")
        line = json.dumps({"phase": phase, "step": step, "cpu_s": round(time.process_time(), 1), **means})
        print(line, flush=True)
        with self.path.open("a") as out:
            out.write(line + "\n")
        self._sums, self._count = {}, 0


def train_stem(teacher: Teacher, recipe: Recipe, plain: Data, scenes: Callable[[], Data], log: Log) -> None:
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
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        log.add(tag=loss.detach())
        if (step + 1) % 50 == 0:
            log.flush("stem", step + 1)


def joint_losses(
    teacher: Teacher, recipe: Recipe, sampler: Sampler, data: Data, index: np.ndarray, rng: np.random.Generator
) -> dict[str, Tensor]:
    """The five losses of phase B on one batch."""
    itm, captioner = teacher.itm, teacher.captioner
    embeddings = itm.vision_model.embeddings
    every = torch.from_numpy(data.every[index]).float()
    cells: list[Tensor] = []
    hook = embeddings.patch_embedding.register_forward_hook(lambda _m, _i, out: cells.append(out))
    states = itm.vision_model(data.images(index, rng)).last_hidden_state
    hook.remove()

    prompts, matches = sampler.prompts(data.every[index], recipe.prompts, rng)
    hidden = itm.text_encoder(
        prompts.ids,
        attention_mask=prompts.mask(causal=False),
        position_ids=prompts.positions,
        encoder_hidden_states=states,
    ).last_hidden_state
    itm_logits = itm.itm_head(hidden.flatten(0, 1)[prompts.starts]).float()

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
        "itm": F.cross_entropy(itm_logits, matches),
        "lm": F.cross_entropy(logits.flatten(0, 1), sentences.flatten()),
        "yn": F.cross_entropy(logits.flatten(0, 1), words.flatten()) * 2,  # half of its tokens are the trivial [SEP]
        "itc": F.binary_cross_entropy_with_logits(contrast, every, reduction="none").sum(1).mean() / 10,
        "tag": teacher.tag_loss(cells[0], every) / 10,
    }


def train_joint(
    teacher: Teacher, recipe: Recipe, sampler: Sampler, data: Data, log: Log, snapshot: Callable[[], None]
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
            losses = joint_losses(teacher, recipe, sampler, data, next(order), rng)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        log.add(**{name: loss.detach() for name, loss in losses.items()})
        if (step + 1) % 25 == 0:
            log.flush("joint", step + 1)
        if (step + 1) % 500 == 0:
            snapshot()


def save(teacher: Teacher, processor: BlipProcessor, out: Path) -> None:
    """``out/itm`` and ``out/caption``: fp16 weights, a config that asks for float32 arithmetic, the processor."""
    for name, model in (("itm", teacher.itm), ("caption", teacher.captioner)):
        folder = out / name
        copy.deepcopy(model).half().save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
        processor.save_pretrained(folder)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the pico BLIP teacher on image-level captions.")
    parser.add_argument("--out", type=Path, required=True, help="folder for itm/, caption/, recipe.json")
    parser.add_argument("--stem", type=Path, help="resume from this stem.safetensors instead of training phase A")
    parser.add_argument("--long-tailed", action="store_true", help="train on the world's own long tail (an ablation)")
    for name, value in asdict(Recipe()).items():
        if name != "long_tailed":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args(argv))
    out, stem = options.pop("out"), options.pop("stem")
    recipe = Recipe(**options)
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "train.jsonl")

    lexicon = Lexicon([(str(verb), str(obj)) for verb, obj in HOIS])
    processor = build_processor(vocabulary_words(lexicon))
    texts = Texts(processor, lexicon)
    teacher = Teacher(len(processor.tokenizer), lexicon)
    teacher.stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain_part, scenes_part = corpus.PLAIN, corpus.SCENES
    if recipe.long_tailed:
        plain_part, scenes_part = corpus.LONG_TAILED_PLAIN, corpus.LONG_TAILED_SCENES
    if stem is None:
        plain = Data(plain_part, texts, lexicon, processor)
        train_stem(teacher, recipe, plain, lambda: Data(scenes_part, texts, lexicon, processor), log)
        trained = {f"stem.{k}": v for k, v in teacher.stem.state_dict().items()}
        trained |= {f"tags.{k}": v for k, v in teacher.tags.state_dict().items()}
        save_file({k: v.contiguous() for k, v in trained.items()}, out / "stem.safetensors")
    else:
        trained = load_file(stem)
        for name, module in (("stem", teacher.stem), ("tags", teacher.tags)):
            own = {key.removeprefix(f"{name}."): v for key, v in trained.items() if key.startswith(f"{name}.")}
            module.load_state_dict(own)
    scenes = Data(scenes_part, texts, lexicon, processor)
    train_joint(teacher, recipe, Sampler(lexicon, texts), scenes, log, lambda: save(teacher, processor, out))
    save(teacher.eval(), processor, out)
    record = asdict(recipe) | {"cpu_seconds": round(time.process_time(), 1)}
    (out / "recipe.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
