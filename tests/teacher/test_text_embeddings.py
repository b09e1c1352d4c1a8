"""Text embeddings are the teacher's own, as unit vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, BlipForImageTextRetrieval, CLIPConfig, CLIPModel

from stages.stage import Batch
from stages.teacher.text_embeddings import TextEmbeddings
from stages.teacher.weights import Checkpoint
from storage.errors import UserError

TEXTS = ["a person riding a bicycle", "a dog", "a photo of a big red cup near the person", "a dog"]


def vectors_of(folder) -> np.ndarray:
    stage = TextEmbeddings(Checkpoint.find(folder))
    stage.open("cpu", {})
    values = stage.compute(Batch(np.zeros(4, "V16"), TEXTS, 3, texts=TEXTS), ["value"], {})["value"]
    assert values.type == stage.output.type
    return np.array(values.to_pylist())


def test_blip_texts_equal_the_stock_projection(checkpoints, processor):
    vectors = vectors_of(checkpoints.itm)
    model = BlipForImageTextRetrieval.from_pretrained(checkpoints.itm).eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        tokens = processor.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            state = model.text_encoder(input_ids=tokens["input_ids"]).last_hidden_state[:, 0]
            stock = torch.nn.functional.normalize(model.text_proj(state), dim=-1)[0]
        np.testing.assert_allclose(vector, stock, atol=1e-5)


def test_clip_texts_are_unit_vectors_that_tell_texts_apart(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**shape, "vocab_size": len(words), "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
        vision_config={**shape, "image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(tmp_path)
    BertTokenizer(vocab={word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    vectors = vectors_of(tmp_path)
    assert vectors.shape == (4, 24)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[1], vectors[3], atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


def test_a_captioner_has_no_text_embeddings(checkpoints):
    with pytest.raises(UserError, match="text_embeddings"):
        TextEmbeddings(Checkpoint.find(checkpoints.caption))
