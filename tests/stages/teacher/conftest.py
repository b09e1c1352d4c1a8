"""Tiny random checkpoints of the real BLIP classes, saved as a user's would be."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
from PIL import Image

SPECIAL = "[PAD] [UNK] [CLS] [SEP] [MASK] [DEC] [ENC] "
PLAIN = "a an the person riding holding sitting on is there anybody photo of bicycle cup chair dog and red big near "
WORDS = (SPECIAL + PLAIN + "yes no ? :").split()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def processor():
    from transformers import BertTokenizer, BlipImageProcessorPil, BlipProcessor

    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)})
    return BlipProcessor(BlipImageProcessorPil(size={"height": 64, "width": 64}), tokenizer)


@pytest.fixture(scope="session")
def blip_config():
    """``make(**text)``: a BLIP of 2 vision and 3 text layers on 64-pixel pictures, weights of std 0.02."""
    from transformers import BlipConfig

    def make(**text):
        shape = {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
        tokens = {"vocab_size": len(WORDS), "bos_token_id": 5, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
        vision = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
        return BlipConfig(
            text_config={**shape, **tokens, "max_position_embeddings": 40, **text},
            vision_config={**vision, "image_size": 64, "patch_size": 16, "initializer_range": 0.02},
            image_text_hidden_size=32,
        )

    return make


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory, processor, blip_config) -> SimpleNamespace:
    """``itm`` and ``caption`` carry the same tower; ``other`` is a captioner with a tower of its own."""
    import torch
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval

    root: Path = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    itm = BlipForImageTextRetrieval(blip_config())
    other = BlipForConditionalGeneration(blip_config())
    other.save_pretrained(root / "other")
    other.vision_model.load_state_dict(itm.vision_model.state_dict())
    other.save_pretrained(root / "caption")
    itm.save_pretrained(root / "itm")
    for name in ("itm", "caption", "other"):
        processor.save_pretrained(root / name)
    return SimpleNamespace(itm=root / "itm", caption=root / "caption", other=root / "other")


@pytest.fixture
def make_batch():
    from hoi_distill.stages.stage import Batch

    def make(count: int = 3, size: int = 4, seed: int = 0) -> Batch:
        """``count`` random pictures of odd sizes, padded to ``size`` by repeating the last."""
        random = np.random.default_rng(seed)
        shapes = [(50 + 9 * index, 80 - 7 * index, 3) for index in range(count)]
        images = [Image.fromarray(random.integers(0, 255, shape, np.uint8)) for shape in shapes]
        rows = np.frombuffer(random.bytes(16 * count), "V16")
        take = [min(index, count - 1) for index in range(size)]
        return Batch(rows[take], [f"{index}.jpg" for index in take], count, [images[index] for index in take])

    return make


@pytest.fixture(scope="session")
def families(tmp_path_factory):
    """``families("clip")``: the folder of a tiny checkpoint of :mod:`tests.fixtures.tiny_families`, built once."""
    from tests.fixtures import tiny_families

    root: Path = tmp_path_factory.mktemp("families")

    def folder(name: str, **options) -> Path:
        where = root / "-".join([name, *(f"{key}={value}" for key, value in options.items())])
        return where if where.exists() else getattr(tiny_families, name)(where, **options)

    return folder
