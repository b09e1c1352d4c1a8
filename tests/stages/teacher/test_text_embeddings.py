"""Text embeddings are the teacher's own, as unit vectors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    BertTokenizer,
    Blip2ForImageTextRetrieval,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    GemmaTokenizer,
)

from hoi_distill.stages.stage import Batch
from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import InputFailure, UserError
from tests.fixtures.stages import made
from tests.fixtures.tiny_blip2 import save_blip2

TEXTS = ["a person riding a bicycle", "a dog", "a photo of a big red cup near the person", "a dog"]


def vectors_of(folder) -> np.ndarray:
    stage = made(TextEmbeddings, checkpoint=Checkpoint.find(folder))
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


def test_blip_2_texts_are_those_that_the_stock_model_compares_with_its_query_tokens(processor, tmp_path):
    torch.manual_seed(0)
    folder = save_blip2(tmp_path / "blip2", processor.tokenizer, initializer_range=0.1)
    vectors = vectors_of(folder)
    model = Blip2ForImageTextRetrieval.from_pretrained(folder).eval()
    assert vectors.shape == (4, model.config.image_text_hidden_size)
    for text, vector in zip(TEXTS, vectors, strict=True):
        tokens = processor.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            stock = model(
                pixel_values=torch.zeros(1, 3, 56, 56),
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
            )
        np.testing.assert_allclose(vector, stock.text_embeds[0], atol=1e-5)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


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
        made(TextEmbeddings, checkpoint=Checkpoint.find(checkpoints.caption))


def test_clip_texts_equal_the_stock_projection(families):
    from transformers import AutoTokenizer

    folder = families("clip")
    vectors = vectors_of(folder)
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            stock = model.get_text_features(**tokenizer(text, return_tensors="pt")).pooler_output[0]
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(stock, dim=-1), atol=1e-5)


def test_siglip_texts_are_padded_to_the_full_length(families):
    """As they were in training: without it the last state, which is read, is another."""
    from transformers import AutoTokenizer, SiglipModel

    folder = families("siglip")
    vectors = vectors_of(folder)
    model, tokenizer = SiglipModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = tokenizer(text, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
        assert ids.shape == (1, 64)
        with torch.no_grad():
            stock = torch.nn.functional.normalize(model.get_text_features(ids).pooler_output[0], dim=-1)
            bare = model.get_text_features(tokenizer(text, return_tensors="pt")["input_ids"]).pooler_output[0]
        np.testing.assert_allclose(vector, stock, atol=1e-5)
        assert np.abs(vector - torch.nn.functional.normalize(bare, dim=-1).numpy()).max() > 1e-3


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens"])
def test_a_sentence_encoder_pools_as_its_record_says(families, mode):
    from transformers import AutoModel, AutoTokenizer

    folder = families("sentence_encoder", pooling=f"pooling_mode_{mode}")
    vectors = vectors_of(folder)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = {"mean_tokens": states.mean(0), "cls_token": states[0], "max_tokens": states.amax(0)}[mode]
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)


def test_a_plain_encoder_is_averaged(families):
    plain, recorded = families("sentence_encoder", pooling=None), families("sentence_encoder")
    np.testing.assert_allclose(vectors_of(plain), vectors_of(recorded), atol=1e-6)


def test_pooling_is_in_the_digest_and_odd_modules_are_refused(families, tmp_path):
    folder = families("sentence_encoder")
    changed = shutil.copytree(folder, tmp_path / "changed")
    path = changed / "1_Pooling" / "config.json"
    path.write_text(path.read_text().replace("}", ', "word_embedding_dimension": 32}'))
    assert Checkpoint.find(changed).digest != Checkpoint.find(folder).digest
    path.write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(UserError, match="weightedmean"):
        made(TextEmbeddings, checkpoint=Checkpoint.find(changed))
    modules = (changed / "modules.json").read_text()
    (changed / "modules.json").write_text(modules.replace("models.Normalize", "models.Dense"))
    with pytest.raises(UserError, match="Dense"):
        made(TextEmbeddings, checkpoint=Checkpoint.find(changed))


@pytest.mark.parametrize("name", ["clip", "siglip", "sentence_encoder"])
def test_a_text_too_long_is_its_own_failure(families, name):
    stage = made(TextEmbeddings, checkpoint=Checkpoint.find(families(name)))
    stage.open("cpu", {})
    texts = ["a dog " * 100]
    with pytest.raises(InputFailure, match="tokens"):
        stage.compute(Batch(np.zeros(1, "V16"), texts, 1, texts=texts), ["value"], {})


def test_a_text_tower_saved_alone_gives_the_same_vectors(families, tmp_path):
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    folder = families("clip")
    model = CLIPModel.from_pretrained(folder)
    config = model.config.text_config
    config.projection_dim = model.config.projection_dim
    tower = CLIPTextModelWithProjection(config)
    tower.text_model, tower.text_projection = model.text_model, model.text_projection
    tower.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    np.testing.assert_allclose(vectors_of(tmp_path), vectors_of(folder), atol=1e-6)


@pytest.fixture
def siglip2(families, tmp_path):
    """``make(model_type)``: a SigLIP whose tokenizer is Gemma's, which keeps capitals; ``siglip`` is how SigLIP 2 lies on the
    hub at a fixed resolution, ``siglip2`` the naflex form."""

    def make(model_type: str):
        folder = shutil.copytree(families("siglip"), tmp_path / model_type)
        letters = ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
        marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        GemmaTokenizer(vocab={piece: index for index, piece in enumerate([*marks, *letters])}).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
        return folder

    return make


def embedded(folder, texts):
    stage = made(TextEmbeddings, checkpoint=Checkpoint.find(folder))
    stage.open("cpu", {})
    return stage, stage.embed(texts)


def test_siglip_2_reads_lower_case_at_a_fixed_resolution(siglip2):
    folder = siglip2("siglip")
    stage, vectors = embedded(folder, ["A Person riding a BICYCLE", "a person riding a bicycle", "a dog"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3
    assert stage.tokenizer("A")["input_ids"] != stage.tokenizer("a")["input_ids"], "it is not the tokenizer's doing"
    assert stage.parameters()["text"] == "lower-cased"


def test_siglip_2_of_any_resolution_is_lower_cased_by_its_own_tokenizer(siglip2):
    from hoi_distill.stages.teacher.weights import tokenizer

    own = tokenizer(siglip2("siglip2"))
    assert own("A Dog")["input_ids"] == own("a dog")["input_ids"]


def test_other_text_encoders_keep_their_text_and_their_fingerprint(families, checkpoints):
    for folder in (families("siglip"), families("clip"), checkpoints.itm):
        assert "text" not in made(TextEmbeddings, checkpoint=Checkpoint.find(folder)).parameters()
    _, vectors = embedded(families("siglip"), ["a Dog", "a dog"])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
