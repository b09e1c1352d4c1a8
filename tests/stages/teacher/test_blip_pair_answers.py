"""A BLIP that is shown boxes answers about its own pair as if it were asked one question at a time; one without marks answers
about the image."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.derived.instances import INSTANCES
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.blip.pair_answers import BlipPairAnswers
from hoi_distill.stages.teacher.pico.modeling.blip import PicoBlipConfig
from hoi_distill.stages.teacher.pico.modeling.marked import BoxMarks, PicoBlipForPairQuestions
from hoi_distill.stages.teacher.weights import Checkpoint
from tests.fixtures.stages import made
from tests.fixtures.tiny_blip import tiny_blip_config

WORDS = Vocabulary.from_actions(
    [
        ("bicycle", "hold", "holding"), ("bicycle", "no_interaction", "no_interaction"), ("bicycle", "ride", "riding"),
        ("cup", "hold", "holding"), ("chair", "sit_on", "sitting_on"),
    ],
    "the test",
)  # fmt: skip
COLUMNS = tuple(WORDS.pair_questions())
BICYCLE, CUP, CHAIR = (WORDS.objects.index(name) for name in ("bicycle", "cup", "chair"))
SIZE = 80, 60
BOXES = [[2, 3, 30, 55], [40, 10, 71, 60], [5, 30, 33, 58], [44, 31, 80, 60], [50, 20, 58, 29]]
SCENE = {
    "boxes": BOXES,
    "labels": [0, 0, BICYCLE, BICYCLE, CUP],
    "humans": 2,
    "width": SIZE[0],
    "height": SIZE[1],
}


@pytest.fixture(scope="module")
def marked(tmp_path_factory, processor):
    """A tiny teacher with marks that are not zero."""
    torch.manual_seed(1)
    config = tiny_blip_config()
    config.vision_config.hidden_size = 48
    model = PicoBlipForPairQuestions(PicoBlipConfig(**config.to_dict()))
    torch.nn.init.normal_(model.marks.gamma, std=4.0)
    for layer in model.vision_model.embeddings.patch_embedding.layers[::3]:
        torch.nn.init.kaiming_normal_(layer.weight)  # else the tower tells images apart by 1e-6
    folder = tmp_path_factory.mktemp("marked")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def opened(folder, **keys):
    stage = made(BlipPairAnswers, vocabulary=WORDS, checkpoint=Checkpoint.find(folder), columns=COLUMNS, **keys)
    stage.open("cpu", {})
    return stage


def image(seed=0):
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8))


def answered(stage, seen, instances=SCENE, columns=COLUMNS):
    """Every answer by column and pair."""
    batch = Batch(np.zeros(1, "V16"), ["x"], 1, [seen])
    found = stage.compute(batch, columns, {"instances": {"value": pa.array([instances], INSTANCES)}})
    assert all(values.type == BlipPairAnswers.output.type for values in found.values())
    cells = {column: values.to_pylist()[0] for column, values in found.items()}
    return {
        (column.split(":")[0], pair): (cell["yes"][at], cell["no"][at])
        for column, cell in cells.items()
        for at, pair in enumerate(cell["pair"])
    }


def assert_alike(ours, theirs, atol=1e-5):
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([*ours.values()], [*theirs.values()], atol=atol)


def covered(box, side=4, fine=240):
    """The share of each cell that a box covers, counted on a fine grid; none of the class token."""
    at = (np.arange(fine) + 0.5) / fine
    x = (at >= box[0]) & (at < box[2])
    y = (at >= box[1]) & (at < box[3])
    count = (y[:, None] & x[None]).reshape(side, fine // side, side, fine // side).mean((1, 3))
    return torch.tensor([0.0, *count.ravel()], dtype=torch.float32)


def asked_alone(stage, seen, question, human, thing):
    """Logarithms of yes and no of one forward of one question, with the attention to the image written out."""
    model, tokenizer = stage.model, stage.tokenizer
    batch = Batch(np.zeros(1, "V16"), ["x"], 1, [seen])
    states = stage.encode(batch)[0]
    boxes = torch.tensor([human, thing], dtype=torch.float32) / torch.tensor([*SIZE, *SIZE])
    ids = [model.config.text_config.bos_token_id, *tokenizer(question, add_special_tokens=False)["input_ids"]]
    bert, marks = model.text_decoder.bert, model.marks
    x = bert.embeddings(input_ids=torch.tensor([ids]))
    x = torch.cat((x[:, :1], marks(boxes[None, None]).tokens[0], x[:, 1:]), 1)
    shares = torch.stack([covered(box) for box in boxes.tolist()])
    ahead = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
    for layer, gamma in zip(bert.encoder.layer, marks.gamma, strict=True):
        attended = layer.attention(x, attention_mask=ahead)[0]
        cross, heads = layer.crossattention.self, layer.crossattention.self.num_attention_heads
        query, key, value = (
            project(given).unflatten(-1, (heads, -1)).movedim(-2, 0)
            for project, given in ((cross.query, attended[0]), (cross.key, states), (cross.value, states))
        )
        weight = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5 + (gamma @ shares)[:, None]
        found = (weight.softmax(-1) @ value).movedim(0, 1).flatten(1)
        x = layer.feed_forward_chunk(layer.crossattention.output(found[None], attended))
    chance = model.text_decoder.cls(x[:, -1])[0].softmax(-1)
    return [float(chance[tokenizer.convert_tokens_to_ids(word)].log()) for word in ("yes", "no")]


def test_every_answer_is_that_to_one_question_by_itself(marked):
    stage, seen = opened(marked), image()
    found = answered(stage, seen)
    thing_of = {0: 1, 1: 2, 2: 3, 3: 4, 4: 0, 5: 2, 6: 3, 7: 4}
    assert set(found) == {("hold", pair) for pair in (1, 2, 3, 5, 6, 7)} | {("ride", pair) for pair in (1, 2, 5, 6)}
    with torch.inference_mode():
        for (verb, pair), logs in found.items():
            what = "a cup" if thing_of[pair] == 4 else "a bicycle"
            doing = {"hold": "holding", "ride": "riding"}[verb]
            alone = asked_alone(
                stage, seen, f"is there anybody {doing} {what}?", BOXES[pair // 4], BOXES[thing_of[pair]]
            )
            np.testing.assert_allclose(logs, alone, atol=1e-5)
    values = np.array([*found.values()])
    assert np.ptp(values[:, 0] - values[:, 1]) > 1e-3, "else constants were compared"


def test_neither_how_many_are_asked_at_once_nor_the_columns_beside_matter(marked):
    stage, seen = opened(marked), image()
    plain = answered(stage, seen)
    for at_once in (1, 3):
        assert_alike(answered(opened(marked, questions_at_once=at_once), seen), plain)
    for column in COLUMNS:
        own = {key: logs for key, logs in plain.items() if key[0] == column.split(":")[0]}
        assert_alike(answered(stage, seen, columns=[column]), own)


def test_both_boxes_reach_the_teacher(marked):
    stage, seen = opened(marked), image()
    plain = answered(stage, seen)
    for moved in (0, 2):
        boxes = [box if at != moved else [20, 5, 75, 50] for at, box in enumerate(BOXES)]
        other = answered(stage, seen, {**SCENE, "boxes": boxes})
        touched = {key for key in plain if not np.allclose(plain[key], other[key], atol=1e-5)}
        about = {1, 2, 3} if moved == 0 else {1, 5}
        assert touched == {key for key in plain if key[1] in about}


def test_two_images_do_not_mix(marked):
    stage = opened(marked)
    before = answered(stage, image(1))
    other = answered(stage, image(2))
    assert not np.allclose([*before.values()], [*other.values()], atol=1e-4)
    assert_alike(answered(stage, image(1)), before, atol=0)


def test_nobody_to_ask_about_is_an_empty_cell(marked):
    for labels in ([], [0], [BICYCLE, CUP]):
        scene = {**SCENE, "labels": labels, "boxes": BOXES[: len(labels)], "humans": labels.count(0)}
        assert answered(opened(marked), image(), scene) == {}


def test_a_captioner_without_marks_answers_about_the_image_for_every_pair(checkpoints):
    stage, seen = opened(checkpoints.caption), image()
    found = answered(stage, seen)
    assert len({found["ride", pair] for pair in (1, 2, 5, 6)}) == 1
    assert len({found["hold", pair] for pair in (1, 2, 3, 5, 6, 7)}) == 2
    batch = Batch(np.zeros(1, "V16"), ["x"], 1, [seen])
    words = stage.tokenizer("is there anybody riding a bicycle?", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        given = torch.tensor([[stage.model.config.text_config.bos_token_id, *words]])
        logits = stage.model.text_decoder(given, encoder_hidden_states=stage.encode(batch)).logits[0, -1]
    stock = logits.log_softmax(-1)[stage.tokenizer.convert_tokens_to_ids(["yes", "no"])]
    np.testing.assert_allclose(found["ride", 1], stock, atol=1e-5)


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 1e-2), ("float16", 1e-3)])
@pytest.mark.parametrize("kind", ["marked", "caption"])
def test_half_the_precision_gives_the_same_answers_but_for_rounding(marked, checkpoints, kind, dtype, atol):
    folder = {"marked": marked, "caption": checkpoints.caption}[kind]
    plain, half = answered(opened(folder), image()), answered(opened(folder, dtype=dtype), image())
    assert_alike(half, plain, atol=atol)


def test_a_cells_share_is_what_the_box_covers_of_it():
    boxes = torch.tensor([[0.1, 0.2, 0.55, 0.9], [0.3, 0.3, 0.35, 0.325], [0.0, 0.0, 1.0, 1.0]])
    found = BoxMarks(8, 1, 1, 4).covered(boxes)
    torch.testing.assert_close(found, torch.stack([covered(box) for box in boxes.tolist()]), atol=1e-5, rtol=0)


def test_the_fingerprint_follows_what_answers_depend_on(marked, checkpoints):
    def record(folder=marked, **keys):
        keys = {"columns": COLUMNS, **keys}
        return str(
            fingerprint_record(made(BlipPairAnswers, vocabulary=WORDS, checkpoint=Checkpoint.find(folder), **keys))
        )

    assert record() == record(columns=COLUMNS[:1], questions_at_once=7, memory_mib=8, audit=0.1, gpus=0.5)
    others = {record(checkpoints.caption), record(checkpoints.other), record(dtype="bfloat16")}
    assert len({record(), *others}) == 4
