"""What the shipped pico teacher promises: it loads whole, knows its words, and knows the pico world."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from hoi_distill.stages.data.pico.classes import HOIS
from hoi_distill.stages.data.pico.render import render_scene
from hoi_distill.stages.data.pico.world import pico_vocabulary, scene_seed
from hoi_distill.stages.data.prompts import NO_INTERACTION
from hoi_distill.stages.teacher.pico.evaluation import blip as evaluate
from hoi_distill.stages.teacher.pico.modeling.blip import (
    PicoBlipForConditionalGeneration,
    PicoBlipForImageTextRetrieval,
    build_processor,
    load_strict,
)
from hoi_distill.stages.teacher.pico.training import blip as train
from hoi_distill.stages.teacher.pico.training import captions, corpus, lessons
from hoi_distill.stages.teacher.pico.training.captions import Grammar
from hoi_distill.stages.teacher.pico.training.packing import pack
from hoi_distill.storage.errors import UserError

SHIPPED = evaluate.SHIPPED
LEXICON = Grammar(HOIS)
SCENES = 60


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(SHIPPED / "itm")


@pytest.fixture(scope="module")
def itm():
    return load_strict(PicoBlipForImageTextRetrieval, SHIPPED / "itm")


@pytest.fixture(scope="module")
def captioner():
    return load_strict(PicoBlipForConditionalGeneration, SHIPPED / "caption")


@pytest.fixture(scope="module")
def unseen(processor):
    """Scenes that neither training nor the held-out figures have used: images and the facts that hold, bool [N, H]."""
    scenes = [render_scene(1_900_000_000 + i, temper=0.35) for i in range(SCENES)]
    every = np.array([[fact in (*scene.facts, *scene.co_facts) for fact in LEXICON.facts] for scene in scenes])
    return evaluate.pixel_values(processor, np.stack([scene.image for scene in scenes])), every


# --- the grammar ---


def test_every_fact_survives_caption_and_list():
    everything = list(range(len(HOIS)))
    assert LEXICON.parse_caption(captions.caption(HOIS)) == everything
    listed = [h for h in everything if HOIS[h][0] != NO_INTERACTION]
    assert LEXICON.parse_listing(captions.listing(HOIS)) == listed
    for h, fact in enumerate(HOIS):
        assert LEXICON.parse_caption(captions.prompt(*fact)) == [h]


def test_parsing_forgives_the_spacing_and_prefix_of_a_decoded_answer():
    said = "the person is riding a bicycle ; the person is flying a carpet ; the person is riding a bicycle"
    assert LEXICON.parse_listing(f"List the interactions : {said}") == [HOIS.index(("ride", "bicycle"))]
    assert LEXICON.parse_listing(f"{captions.LIST_PREFIX} {captions.NOTHING}") == []
    assert LEXICON.parse_caption("a person and a cup and a person riding") == [HOIS.index((NO_INTERACTION, "cup"))]


def test_prompts_are_the_vocabularys_own():
    assert pico_vocabulary().prompts() == tuple(captions.prompt(*fact) for fact in HOIS)


def test_sentences_read_as_english():
    assert captions.prompt("talk_on", "cell_phone") == "a photo of a person talking on a cell phone"
    assert captions.prompt(NO_INTERACTION, "umbrella") == "a photo of a person and an umbrella"
    assert captions.question("sit_on", "chair") == "is there anybody sitting on a chair?"
    with pytest.raises(ValueError, match="no yes/no question"):
        captions.question(NO_INTERACTION, "chair")


# --- the files ---


@pytest.mark.parametrize(
    ("name", "auto", "cls"),
    [
        ("itm", AutoModel, PicoBlipForImageTextRetrieval),
        ("caption", AutoModelForImageTextToText, PicoBlipForConditionalGeneration),
    ],
)
def test_checkpoint_loads_whole_through_the_auto_classes_and_round_trips(name, auto, cls, tmp_path):
    assert AutoConfig.from_pretrained(SHIPPED / name).architectures == [cls.__name__]
    model, info = auto.from_pretrained(SHIPPED / name, output_loading_info=True)
    assert type(model) is cls
    assert not any(info.values())
    assert model.dtype == torch.float32
    model.save_pretrained(tmp_path)
    again = load_strict(cls, tmp_path).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_both_checkpoints_hold_one_tower():
    """What lets features, ITM and captions come from one vision pass."""
    first, second = (load_file(SHIPPED / name / "model.safetensors") for name in ("itm", "caption"))
    tower = [key for key in first if key.startswith("vision_model.")]
    assert tower
    assert all(torch.equal(first[key], second[key]) for key in tower)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    shutil.copytree(SHIPPED / "caption", tmp_path / "caption")
    with pytest.raises(UserError, match="does not fit PicoBlipForImageTextRetrieval"):
        load_strict(PicoBlipForImageTextRetrieval, tmp_path / "caption")


def test_tokenizer_knows_every_word_whole(processor):
    tokenizer = processor.tokenizer
    texts = [captions.prompt(*fact) for fact in HOIS] + [captions.LIST_PREFIX, captions.NOTHING, captions.listing(HOIS)]
    texts += [captions.question(*fact) for fact in HOIS if fact[0] != NO_INTERACTION]
    for text in texts:
        tokens = tokenizer.tokenize(text)
        assert tokenizer.unk_token not in tokens
        assert not any(token.startswith("##") for token in tokens), text


def test_processor_shows_the_model_what_training_showed_it(processor):
    """Training normalises uint8 arrays itself; a decoded image of 128 pixels must come out the same."""
    pixels = render_scene(1_900_000_000).image
    image = processor.image_processor
    mean, std = np.array(image.image_mean), np.array(image.image_std)
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    shown = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0].numpy()
    np.testing.assert_allclose(shown, expected, atol=1e-5)


# --- what it knows ---


def test_packed_prompts_score_as_the_stock_forward_does(itm, processor, unseen):
    images, _ = unseen
    prompts = [captions.prompt(*fact) for fact in HOIS[:7]]
    packed, cosines = evaluate.itm_scores(itm, processor, images[:2], prompts)
    texts = processor.tokenizer(prompts * 2, return_tensors="pt", padding=True)
    pixel_values = images[:2].repeat_interleave(7, 0)
    with torch.inference_mode():
        logits = itm(texts.input_ids, pixel_values, attention_mask=texts.attention_mask).itm_score
        cosine = itm(texts.input_ids, pixel_values, attention_mask=texts.attention_mask, use_itm_head=False).itm_score
    torch.testing.assert_close(packed.flatten(), logits[:, 1] - logits[:, 0], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(cosines.flatten(), cosine.diagonal(), atol=1e-4, rtol=1e-4)


def test_itm_ranks_what_is_there_first(itm, processor, unseen):
    images, every = unseen
    margins, _ = evaluate.itm_scores(itm, processor, images, [captions.prompt(*fact) for fact in HOIS])
    scores = margins.numpy()
    assert np.nanmean(evaluate.average_precision(scores, every)) > 0.8
    assert evaluate.swap_accuracy(scores, every, HOIS)["pairwise"] > 0.9


def test_captions_name_what_is_there(captioner, processor, unseen):
    images, every = unseen
    said = evaluate.generate(captioner, processor, images, captions.CAPTION_PREFIX)
    assert all(text.startswith(captions.CAPTION_PREFIX) for text in said)
    facts = [LEXICON.parse_caption(text) for text in said]
    assert evaluate.precision_recall(facts, every, every)["precision"] > 0.7
    unprompted = captioner.generate(images[:3], max_new_tokens=72)
    assert processor.batch_decode(unprompted, skip_special_tokens=True) == said[:3]


def test_lists_name_co_labels_too(captioner, processor, unseen):
    images, every = unseen
    every = every & np.array([verb != NO_INTERACTION for verb, _ in HOIS])
    said = evaluate.generate(captioner, processor, images, captions.LIST_PREFIX)
    figures = evaluate.precision_recall([LEXICON.parse_listing(text) for text in said], every, every)
    assert figures["precision"] > 0.7
    assert figures["recall"] > 0.6


def test_yes_and_no_are_better_than_chance(captioner, processor, unseen):
    images, every = unseen
    assert evaluate.yes_no_accuracy(captioner, processor, images, every, LEXICON)["accuracy"] > 0.75


# --- how it is trained ---


def test_teacher_is_trained_and_measured_on_images_that_no_student_sees():
    parts = (*corpus.TRAINED, corpus.HELD_OUT)
    spans = sorted((part.first_seed, part.first_seed + part.count) for part in parts)
    assert spans[0][0] > max(scene_seed(world, split, 10**6) for world in range(90) for split in ("train", "test"))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.fixture
def tiny_corpus(tmp_path, monkeypatch):
    """A corpus of 96 + 64 images in a folder of its own."""
    parts = {"PLAIN": corpus.CorpusPart("plain", 1_900_001_000, 64, (0.2,), (1, 1), True)}
    parts["SCENES"] = corpus.CorpusPart("scenes", 1_900_002_000, 96, (0.2, 0.35))
    for name, part in parts.items():
        monkeypatch.setattr(corpus, name, part)
    monkeypatch.chdir(tmp_path)
    return parts["SCENES"]


def test_facts_are_read_back_from_sentences_alone(tiny_corpus):
    loaded = corpus.load(tiny_corpus)
    primary, every = loaded.facts(LEXICON)
    for i in range(0, tiny_corpus.count, 7):
        scene = render_scene(tiny_corpus.first_seed + i, temper=tiny_corpus.tempers[i % 2])
        assert {HOIS[h] for h in np.flatnonzero(primary[i])} == set(scene.facts)
        assert {HOIS[h] for h in np.flatnonzero(every[i])} == {*scene.facts, *scene.co_facts}
        np.testing.assert_array_equal(loaded.pixels[i], scene.image)


def test_wrong_prompts_never_name_a_co_label():
    processor = build_processor(lessons.vocabulary_words(LEXICON))
    sampler = lessons.Sampler(LEXICON, lessons.TokenizedSentences(processor, LEXICON))
    true = np.zeros(len(HOIS), bool)
    true[[HOIS.index(("drink_with", "cup")), HOIS.index(("hold", "cup"))]] = True
    rng = np.random.default_rng(0)
    wrong = [HOIS[sampler.swap(true, rng)] for _ in range(300)]
    assert ("hold", "cup") not in wrong
    assert ("pour", "cup") in wrong
    assert ("hold", "book") in wrong


def test_packing_keeps_texts_apart():
    packed = pack([[[5, 6], [7, 8, 9]], [[4]]])
    assert packed.starts.tolist() == [0, 2, 5]
    assert packed.positions[0].tolist() == [0, 1, 0, 1, 2]
    seen = packed.mask(causal=True)[0, 0] == 0
    assert seen.tolist() == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, True, True, False],
        [False, False, True, True, True],
    ]


@pytest.mark.slow
def test_training_is_a_function_of_its_command(tiny_corpus):
    command = ["--stem-plain-steps=2", "--stem-scene-steps=2", "--joint-steps=3", "--stem-batch=16", "--joint-batch=8"]
    for out in ("a", "b", "c"):
        train.main([f"--out={out}", f"--seed={int(out == 'c')}", *command])
    a, b, c = (load_file(Path(out) / "itm" / "model.safetensors") for out in ("a", "b", "c"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)
