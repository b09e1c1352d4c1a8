"""Florence-2: maps, captions and boxes are the stock model's and its processor's, from one pass of the tower."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.derived.open_vocabulary_detections import OpenVocabularyDetections
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher import weights
from hoi_distill.stages.teacher.florence.boxes import STEPS, FlorenceBoxes, places
from hoi_distill.stages.teacher.florence.captions import TASKS, FlorenceCaptions
from hoi_distill.stages.teacher.vision_features import VisionFeatures
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made

GROUNDING = "<CAPTION_TO_PHRASE_GROUNDING>"
SIZES = ((50, 80), (90, 40), (64, 64))
NAMES, CAPTIONS = ("dog", "cup"), ("<CAPTION>", "<OCR>")
WRITTEN = 24


def stock(folder):
    """The model, and its processor on PIL whatever else is installed."""
    from transformers import AutoImageProcessor, AutoProcessor, Florence2ForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    return Florence2ForConditionalGeneration.from_pretrained(folder).eval(), processor


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    blocks = [random.integers(0, 255, (4, 4, 3), np.uint8) for _ in SIZES]
    return [Image.fromarray(block).resize(size) for block, size in zip(blocks, SIZES, strict=True)]


@pytest.fixture(scope="module")
def folder(families, tmp_path_factory, images):
    """A tiny Florence-2 that was taught what to write about these images: of the dog and of the cup other boxes, one or two."""
    where = shutil.copytree(families("florence2"), tmp_path_factory.mktemp("florence") / "taught")
    model, processor = stock(where)
    random = np.random.default_rng(3)
    asked, answers = [], []
    for image, name in itertools.product(images, NAMES):
        corners = [random.integers(start, start + STEPS // 2, (1 + (name == "cup"), 2)) for start in (0, STEPS // 2)]
        boxes = np.concatenate(corners, axis=1).tolist()
        asked.append((f"{GROUNDING}a {name}", image))
        answers.append(f"<s>a {name}" + "".join(f"<loc_{step}>" for box in boxes for step in box) + "</s>")
    for (number, image), task in itertools.product(enumerate(images), CAPTIONS):
        asked.append((task, image))
        answers.append(f"<s>the person holding {number} {'red' if task == '<OCR>' else 'big dog'}</s>")
    texts, seen = zip(*asked, strict=True)
    given = processor(text=list(texts), images=list(seen), return_tensors="pt", padding=True)
    labels = processor.tokenizer(answers, return_tensors="pt", padding=True)["input_ids"]
    labels = labels.masked_fill(labels == processor.tokenizer.pad_token_id, -100)
    with torch.no_grad():
        looked = model.get_image_features(given.pop("pixel_values")).pooler_output
    ids = given.pop("input_ids")
    of_image = (ids == model.config.image_token_id)[..., None]
    torch.manual_seed(0)
    descent = torch.optim.Adam(model.model.language_model.parameters(), lr=6e-3)
    for _ in range(45):
        read = model.get_input_embeddings()(ids).masked_scatter(of_image, looked)
        loss = model(inputs_embeds=read, **given, labels=labels).loss
        descent.zero_grad()
        loss.backward()
        descent.step()
    assert loss < 0.1, "else it did not learn to write"
    model.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def found(folder):
    return Checkpoint.find(folder)


@pytest.fixture(scope="module")
def model_and_processor(folder):
    return stock(folder)


@pytest.fixture
def batch(images):
    """Three images, padded to four rows."""
    return Batch(np.zeros(4, "V16"), ["a", "b", "c", "c"], 3, [*images, images[-1]])


def opened(stage, checkpoint, **options):
    usual = {"columns": NAMES if stage is FlorenceBoxes else CAPTIONS, "max_new_tokens": WRITTEN, "batch_size": 4}
    found = made(stage, checkpoint=checkpoint, **{**usual, **options})
    found.open("cpu", {})
    return found


def written(model, processor, text, image):
    given = processor(text=text, images=image, return_tensors="pt")
    return model.generate(**given, max_new_tokens=WRITTEN, num_beams=1, do_sample=False)[0]


def test_captions_are_what_the_stock_model_writes(found, model_and_processor, images, batch):
    answers = opened(FlorenceCaptions, found).compute(batch, CAPTIONS, {})
    model, processor = model_and_processor
    for task in CAPTIONS:
        for index, image in enumerate(images):
            ids = written(model, processor, task, image)
            text = processor.post_process_generation(sequence=ids, task=task)[task]
            assert answers[task].to_pylist()[index] == {"text": text, "score": None}
        assert answers[task][3] == answers[task][2]
    assert len({answers[task].to_pylist()[index]["text"] for task in CAPTIONS for index in range(3)}) > 4


def test_an_answer_begins_as_the_checkpoint_forces_it_to(families, images):
    """Of a model that would not begin so by itself."""
    stage = opened(FlorenceCaptions, Checkpoint.find(families("florence2")), max_new_tokens=6)
    model, processor = stock(families("florence2"))
    given = processor(text="<OCR>", images=images[0], return_tensors="pt")
    told = model.generate(**given, max_new_tokens=6, num_beams=1, do_sample=False)
    batch = Batch(np.zeros(1, "V16"), ["a"], 1, images[:1])
    with torch.inference_mode():
        assert torch.equal(stage.answers(stage.seen(batch), "<OCR>"), told)
    with torch.no_grad():
        logits = model(**given, decoder_input_ids=told[:, :1]).logits[0, -1]
    assert logits.argmax() != told[0, 1] == processor.tokenizer.bos_token_id


def test_boxes_are_those_that_the_stock_processor_reads_of_the_stock_answer(found, model_and_processor, images, batch):
    """But that it cuts a coordinate to a whole pixel, where here it is the middle of its step."""
    answers = opened(FlorenceBoxes, found).compute(batch, NAMES, {})
    model, processor = model_and_processor
    for name in NAMES:
        for index, image in enumerate(images):
            ids = written(model, processor, f"{GROUNDING}a {name}", image)
            told = processor.post_process_generation(sequence=ids, task=GROUNDING, image_size=image.size)[GROUNDING]
            cell = answers[name].to_pylist()[index]
            assert sorted(np.floor(np.array(cell["boxes"]) + 1e-3).tolist()) == sorted(told["bboxes"])
            steps = np.array(re.findall(r"<loc_(\d+)>", processor.tokenizer.decode(ids)), float).reshape(-1, 4)
            middles = (steps + 0.5) / STEPS * np.tile(image.size, 2)
            np.testing.assert_allclose(sorted(cell["boxes"]), sorted(middles.tolist()), atol=1e-3)
            assert (cell["width"], cell["height"]) == image.size
            assert len(cell["scores"]) == 1 + (name == "cup")


def test_a_boxs_score_is_the_geometric_mean_of_the_probabilities_of_its_places(
    found, model_and_processor, images, batch
):
    cell = opened(FlorenceBoxes, found).compute(batch, ["dog"], {})["dog"].to_pylist()[0]
    model, processor = model_and_processor
    ids = written(model, processor, f"{GROUNDING}a dog", images[0])
    given = processor(text=f"{GROUNDING}a dog", images=images[0], return_tensors="pt")
    with torch.no_grad():
        logits = model(**given, decoder_input_ids=ids[None, :-1]).logits[0]
    chances = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    first = processor.tokenizer.convert_tokens_to_ids("<loc_0>")
    four = chances[ids[1:] >= first][:4]
    assert len(cell["scores"]) == 1
    assert cell["scores"][0] == pytest.approx(float(four.mean().exp()), abs=1e-4)


@pytest.mark.parametrize("layer", [-1, 3])
def test_maps_are_those_of_a_stage_of_the_stock_tower(found, model_and_processor, images, batch, layer):
    stage = made(VisionFeatures, checkpoint=found, columns=("original", "flip"), layer=layer)
    stage.open("cpu", {})
    maps = stage.compute(batch, stage.columns, {})
    model, processor = model_and_processor
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    for view, seen in (("original", pixels), ("flip", pixels.flip(-1))):
        with torch.no_grad():
            tower = model.model.vision_tower(seen, output_hidden_states=True)
        expected = tower.hidden_states[layer] if layer > 0 else model.get_image_features(seen).last_hidden_state
        assert maps[view].shape == (4, *stage.output.shape)
        torch.testing.assert_close(maps[view][:3], expected.detach())


@pytest.mark.slow
def test_the_exported_tower_gives_the_maps(found, images, tmp_path):
    import onnxruntime

    from hoi_distill.pipeline.export import write_graph
    from hoi_distill.stages.teacher.exported import encoder_graph

    stage = made(VisionFeatures, checkpoint=found)
    stage.open("cpu", {})
    graph = encoder_graph("vision_features", stage, images[0])
    write_graph(graph, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "encoder.onnx"))
    for image in images:
        pixels = stage.prepare(image)["pixel_values"]
        (maps,) = session.run(None, {"pixel_values": pixels.numpy()})
        with torch.inference_mode():
            np.testing.assert_allclose(maps, graph.module(pixels).numpy(), atol=5e-3)


def test_maps_captions_and_boxes_take_one_pass_of_the_tower(found, batch, monkeypatch):
    from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

    shared: dict = {}
    stages = [
        made(VisionFeatures, checkpoint=found, batch_size=4),
        *(made(kind, checkpoint=found, columns=("a",), max_new_tokens=2) for kind in (FlorenceCaptions, FlorenceBoxes)),
    ]
    for stage in stages:
        stage.open("cpu", shared)
    assert len({stage.vision_key for stage in stages}) == 1
    assert stages[1].model is stages[2].model
    passes, forward = [], Florence2VisionBackbone.forward
    monkeypatch.setattr(
        Florence2VisionBackbone,
        "forward",
        lambda self, *given, **named: passes.append(1) or forward(self, *given, **named),
    )
    for stage in stages:
        stage.compute(batch, stage.columns, {})
    assert len(passes) == 1


def test_a_worker_reads_the_checkpoint_once_for_all_that_it_asks(found, monkeypatch):
    loads, model_class, shared = [], weights.model_class, {}
    monkeypatch.setattr(weights, "model_class", lambda given: loads.append(1) or model_class(given))
    for kind in (FlorenceCaptions, FlorenceBoxes):
        made(kind, checkpoint=found, columns=("a",)).open("cpu", shared)
    made(VisionFeatures, checkpoint=found).open("cpu", shared)
    assert len(loads) == 1


def test_a_row_does_not_depend_on_its_neighbours_nor_on_the_other_questions(found, images, batch):
    for kind, asked in ((FlorenceCaptions, CAPTIONS), (FlorenceBoxes, NAMES)):
        together = opened(kind, found).compute(batch, asked, {})
        alone = opened(kind, found, columns=asked[1:], batch_size=1)
        (cell,) = alone.compute(Batch(batch.row_ids[:1], ["b"], 1, [images[1]]), asked[1:], {})[asked[1]].to_pylist()
        other = together[asked[1]].to_pylist()[1]
        assert cell.get("text") == other.get("text")
        for key in ("boxes", "scores") if kind is FlorenceBoxes else ():
            np.testing.assert_allclose(cell[key], other[key], atol=1e-3)


def test_an_opened_stage_travels_as_plain_parameters(found, batch):
    stage = opened(FlorenceBoxes, found)
    sent = pickle.dumps(stage)
    assert len(sent) < 20_000
    arrived = pickle.loads(sent)
    arrived.open("cpu", {})
    assert arrived.compute(batch, ["dog"], {}) == stage.compute(batch, ["dog"], {})


def test_sentences_of_tasks_are_those_of_the_processor_class(model_and_processor):
    _, processor = model_and_processor
    for task, sentence in TASKS.items():
        assert processor.task_prompts_without_inputs[task] == sentence
    grounding = processor.task_prompts_with_input[GROUNDING].format(input="{phrase}")
    assert FlorenceBoxes.Config.model_fields["prompt"].default == grounding
    told = FlorenceBoxes.Config.model_fields["prompt"].description
    assert processor.task_prompts_with_input["<OPEN_VOCABULARY_DETECTION>"].format(input="{name}") in told


def test_places_behind_words_are_boxes_four_by_four_and_nothing_else_is():
    bins, marks, word = {100 + step: step for step in range(STEPS)}, {0, 1, 2}, 50

    def told(*ids, chance=-0.5):
        return places([2, 0, *ids, 2], [chance] * (len(ids) + 2), bins, marks)

    four, other = (101, 102, 103, 104), (201, 202, 203, 204)
    assert told(word, *four) == [([1, 2, 3, 4], pytest.approx(np.exp(-0.5)))]
    assert [steps for steps, _ in told(word, *four, *other)] == [[1, 2, 3, 4], [101, 102, 103, 104]]
    assert [steps for steps, _ in told(word, *four, word, word, *other)] == [[1, 2, 3, 4], [101, 102, 103, 104]]
    assert [steps for steps, _ in told(word, *four, 105, 106)] == [[1, 2, 3, 4]]  # cut within a box
    assert [steps for steps, _ in told(word, 101, 102, word, *other)] == [[101, 102, 103, 104]]
    assert told(*four) == told(word, 1, *four) == told(word, 101, 102, 103) == told(word) == []


def test_every_key_that_decides_a_value_is_in_the_fingerprint_and_no_other(found):
    def record(kind, **keys):
        columns = NAMES if kind is FlorenceBoxes else CAPTIONS
        return fingerprint_record(made(kind, checkpoint=found, **{"columns": columns, **keys}))

    others = ({"max_new_tokens": 9}, {"dtype": "bfloat16"}, {"preprocess": "device"})
    boxes = ({"least": 0.5}, {"prompt": "Locate {name} in the image."})
    same = ({"columns": ("a",)}, {"batch_size": "auto"}, {"gpus": 1.0}, {"compile": True})
    for kind, deciding in ((FlorenceCaptions, others), (FlorenceBoxes, (*others, *boxes))):
        records = [str(record(kind)), *(str(record(kind, **keys)) for keys in deciding)]
        assert len(set(records)) == len(records)
        assert all(record(kind, **keys) == record(kind) for keys in same)


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        (
            FlorenceCaptions,
            {"columns": ("<CAPTON>",)},
            r"columns: '<CAPTON>' is no task .* \(did you mean <CAPTION>\?\)",
        ),
        (FlorenceCaptions, {"columns": ("<OD>",)}, "boxes are stage: florence_boxes"),
        (
            FlorenceCaptions,
            {"columns": ("Is it red?",)},
            r"columns: Florence-2 .* ask 'Is it red\?' with stage: answers",
        ),
        (FlorenceBoxes, {"prompt": "Locate it."}, r"prompt: 'Locate it.' must hold \{name\}"),
    ],
)
def test_what_florence_2_cannot_answer_is_told_at_once(found, kind, options, why):
    with pytest.raises(UserError, match=why):
        made(kind, checkpoint=found, **{"columns": NAMES, **options})


def test_a_sentence_that_does_not_fit_beside_the_image_is_refused_before_any_image(found):
    with pytest.raises(UserError, match=r"columns: .* tokens, the model takes 91 beside an image; shorten it"):
        opened(FlorenceCaptions, found, columns=("z" * 90,))


def test_another_model_and_a_tokenizer_without_places_are_refused(found, folder, families, tmp_path):
    with pytest.raises(UserError, match="cannot fill the captions table; it takes Florence2ForConditionalGeneration"):
        made(FlorenceCaptions, checkpoint=Checkpoint.find(families("llava")), columns=CAPTIONS)
    placeless = shutil.copytree(folder, tmp_path / "placeless")
    record = json.loads((placeless / "tokenizer.json").read_text())
    for token in record["added_tokens"]:
        token["content"] = token["content"].replace("<loc_9", "<place_9")
    (placeless / "tokenizer.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="has 889 of the 1000 places <loc_0> to <loc_999>; fetch"):
        opened(FlorenceBoxes, Checkpoint.find(placeless))


def test_a_checkpoint_that_needs_remote_code_is_refused_with_the_remedy(folder, tmp_path):
    theirs = shutil.copytree(folder, tmp_path / "theirs")
    record = json.loads((theirs / "config.json").read_text())
    vision = record["vision_config"]
    vision["dim_embed"] = vision.pop("embed_dim")
    (theirs / "config.json").write_text(json.dumps(record))
    for kind, columns in ((VisionFeatures, ("original",)), (FlorenceCaptions, CAPTIONS)):
        with pytest.raises(UserError, match=r"config\.json: is written for remote code, .* from florence-community"):
            made(kind, checkpoint=Checkpoint.find(theirs), columns=columns)


def test_an_answer_that_is_not_finite_stops_the_run_and_is_not_taken_for_no_boxes(found, batch):
    stage = opened(FlorenceBoxes, found)
    stage.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(
        FloatingPointError, match="table object_boxes: the model's answers are not finite at dtype float32"
    ):
        stage.compute(batch, ["dog"], {})


def test_boxes_become_detections_of_a_vocabulary(found, batch):
    words = Vocabulary.from_actions(
        [("dog", "walk", "walking"), ("cup", "hold", "holding")], "test", objects=("person", *NAMES)
    )
    boxes = opened(FlorenceBoxes, found, columns=words.object_names()).compute(batch, words.object_names(), {})
    stage = made(OpenVocabularyDetections, vocabulary=words, boxes="object_boxes", overlap=1.0)
    found_in = stage.compute(batch, ["value"], {"object_boxes": boxes})["value"].to_pylist()
    for index, cell in enumerate(found_in):
        assert cell["labels"].count(1) == len(boxes["dog"][index]["scores"]) == 1
        assert cell["labels"].count(2) == len(boxes["cup"][index]["scores"]) == 2


def test_what_has_no_space_of_texts_says_so(found):
    with pytest.raises(UserError, match="width: full"):
        made(VisionFeatures, checkpoint=found, width="projected")
    with pytest.raises(UserError, match="image_size 80 is no multiple of the patch size 32"):
        made(VisionFeatures, checkpoint=found, image_size=80)
