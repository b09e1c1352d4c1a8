"""Asking about every pair: CPU seconds a question with nothing shared, the image shared, and the pair's boxes shared too.

A Qwen2.5-VL with random weights, small enough for a CPU; its image tokens, its prompts and the number of pairs and questions are
those of a usual image of HICO-DET (640 x 480 pixels, 22 pairs, their objects' verbs). All three ways answer the same questions,
in turn, on one thread; the answers must agree to 1e-4. Beside the seconds stand the tokens that go through the language model,
from which the time of a large model follows: docs/pair-answers.md has the formula.

    python -m bench.bench_pair_answers [--json] [--pairs N] [--width N] [--layers N] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.stages.teacher.answers import ImageInputs
from hoi_distill.stages.teacher.pair_answers import PairAnswers
from hoi_distill.stages.teacher.pair_words import PairQuestion
from hoi_distill.stages.teacher.weights import Checkpoint

SIDES = (640, 480)
OBJECTS = ("bicycle", "chair", "bottle", "dog", "laptop")
"""Beside the two people of the drawn boxes."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def save_teacher(folder: Path, vocabulary: Vocabulary, width: int, layers: int) -> Path:
    """A Qwen2.5-VL of random weights, with one token a word and a digit, as its own tokenizer has for usual words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)])
    said = " ".join([*vocabulary.pair_questions(), *vocabulary.object_prompts()])
    asked = (
        " A person is at [1, 2] and another . yes Yes no No Is this ? Answer with or user assistant 0 1 2 3 4 5 6 7 8 9"
    )
    words = ["<unk>", *MARKS, *sorted({piece for piece, _ in split.pre_tokenize_str(said + asked)})]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = split
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        pad_token=MARKS[0],
        eos_token=MARKS[2],
        additional_special_tokens=list(MARKS),
    )
    tokenizer.chat_template = CHAT
    heads = max(width // 64, 1)
    text = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "vocab_size": len(tokenizer), "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": width, "patch_size": 14,
        "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [1],
    }  # fmt: skip
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>", "vision_start_token_id": "<|vision_start|>",
             "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
    ids = {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)).save_pretrained(
        folder
    )
    size = {"shortest_edge": 56 * 56, "longest_edge": 401408}
    Qwen2VLImageProcessorPil(size=size, patch_size=14, merge_size=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def scene(vocabulary: Vocabulary, pairs: int) -> dict[str, Any]:
    """Boxes of two people and of as many objects as give that many pairs, an even number."""
    random = np.random.default_rng(0)
    others = pairs // 2 - 1
    names = ["person", "person", *(OBJECTS[at % len(OBJECTS)] for at in range(others))]
    labels = sorted(vocabulary.objects.index(name) for name in names)
    corners = random.integers(0, (SIDES[0] - 200, SIDES[1] - 200), (len(labels), 2))
    boxes = np.concatenate((corners, corners + random.integers(40, 200, (len(labels), 2))), 1)
    return {"boxes": boxes, "labels": labels, "humans": labels.count(0), "width": SIDES[0], "height": SIDES[1]}


def tokens_of(stage: PairAnswers, image: ImageInputs, questions: Sequence[PairQuestion]) -> dict[str, int]:
    """Tokens through the language model, by what is shared."""
    ids = stage.token_ids(questions)
    trunk = ids[0].index(stage.speaker.image_id) + image.tokens
    rest = [len(each) - each.index(stage.speaker.image_id) - 1 for each in ids]
    by_pair: dict[int, list[list[int]]] = {}
    for question, each in zip(questions, ids, strict=True):
        by_pair.setdefault(question.number, []).append(each)
    alike = [len(_common(group)) - group[0].index(stage.speaker.image_id) - 1 for group in by_pair.values()]
    repeated = sum(shared * (len(group) - 1) for shared, group in zip(alike, by_pair.values(), strict=True))
    none = sum(trunk + each for each in rest)
    return {"image": trunk, "none": none, "one": trunk + sum(rest), "two": trunk + sum(rest) - repeated}


def _common(rows: Sequence[Sequence[int]]) -> Sequence[int]:
    same = 0
    while same < min(map(len, rows)) - 1 and len({row[same] for row in rows}) == 1:
        same += 1
    return rows[0][:same]


def measure(stage: PairAnswers, image: ImageInputs, questions: Sequence[PairQuestion], rounds: int) -> dict[str, Any]:
    """Seconds a question and the largest difference of the answers, by what is shared."""
    ways: dict[str, Callable[[], np.ndarray]] = {
        "none": lambda: stage.one_by_one(image, questions),
        "one": lambda: stage.as_tree(image, questions, levels=1),
        "two": lambda: stage.as_tree(image, questions, levels=2),
    }
    clock = time.process_time if stage.speaker.device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    told: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, way in ways.items():
                began = clock()
                told[name] = way()
                seconds[name].append(clock() - began)
    apart = {name: float(np.abs(told[name] - told["none"]).max()) for name in ways}
    assert max(apart.values()) < (1e-4 if stage.speaker.dtype == "float32" else 1), apart
    return {"ms": {name: 1e3 * min(each) / len(questions) for name, each in seconds.items()}, "apart": apart}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=22)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    given = parser.parse_args()
    torch.set_num_threads(1)
    words = hico_vocabulary()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint.find(save_teacher(Path(folder), words, given.width, given.layers))
        config = PairAnswers.Config(checkpoint=checkpoint, columns=tuple(words.pair_questions()), dtype=given.dtype)
        stage = PairAnswers(config, words)
        stage.open(given.device, {})
        noise = np.random.default_rng(0).integers(0, 255, (SIDES[1], SIDES[0], 3), np.uint8)
        image, boxes = stage.prepare(Image.fromarray(noise)), scene(words, given.pairs)
        columns = [column for column in stage.columns if len(stage.pairs_of(boxes, column)[0])]
        questions = stage.questions(image, boxes, columns)
        tokens = tokens_of(stage, image, questions)
        found = measure(stage, image, questions, given.rounds)
    result = {
        "pairs": len({each.number for each in questions}), "questions": len(questions), "tokens": tokens, **found,
        "width": given.width, "layers": given.layers, "device": given.device, "dtype": given.dtype,
    }  # fmt: skip
    if given.json:
        print(json.dumps(result))
        return
    print(f"{result['questions']} questions about {result['pairs']} pairs, an image of {tokens['image']} tokens")
    for name in ("none", "one", "two"):
        each = found["ms"][name]
        print(
            f"  {name:>5} shared: {each:8.2f} ms a question, {tokens[name]:>8,} tokens, {found['apart'][name]:.1e} apart"
        )


if __name__ == "__main__":
    main()
