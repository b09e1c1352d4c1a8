"""Answers are what the stock model writes greedily, whoever the neighbours are."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.answers import Answers
from hoi_distill.stages.teacher.blip.stages import BlipCaptions
from hoi_distill.stages.teacher.preprocessing import joined
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import InputFailure, UserError
from tests.fixtures.stages import made

NAMES = ("instructblip", "llava", "qwen")
TOWERS = ("vision_model", "model.vision_tower", "model.visual")
OPEN, YES_NO = "what is the person holding", "is there anybody riding a bicycle?"
QUESTIONS = (OPEN, YES_NO)
WRITTEN = 6


@pytest.fixture
def found(families):
    return lambda name: Checkpoint.find(families(name))


@pytest.fixture
def batch():
    """Five images of five shapes, padded to eight rows."""
    random = np.random.default_rng(0)
    shapes = [(50, 80), (90, 40), (33, 64), (20, 20), (120, 60)]
    images = [Image.fromarray(random.integers(0, 255, (*shape, 3), np.uint8)) for shape in shapes]
    take = [min(index, 4) for index in range(8)]
    return Batch(np.zeros(8, "V16"), [str(index) for index in take], 5, [images[index] for index in take])


def opened(checkpoint, columns=QUESTIONS, **options):
    stage = made(
        Answers, checkpoint=checkpoint, columns=columns, **{"max_new_tokens": WRITTEN, "batch_size": 8, **options}
    )
    stage.open("cpu", {})
    return stage


def only(batch: Batch, index: int) -> Batch:
    return Batch(batch.row_ids[:1], ["x"], 1, [batch.images[index]])


def stock_inputs(name, folder, image, question):
    """One image's inputs by the checkpoint's own processor class, on PIL where torchvision is there, too; Qwen's by hand,
    for its class cannot be built without torchvision."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    if name == "qwen":
        tokenizer = AutoTokenizer.from_pretrained(folder)
        seen = AutoImageProcessor.from_pretrained(folder, backend="pil")([image], return_tensors="pt")
        count = int(seen["image_grid_thw"].prod()) // 4
        text = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>{question}<|im_end|>\n"
        ids = tokenizer(text + "<|im_start|>assistant\n", return_tensors="pt")["input_ids"]
        kinds = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        return {**seen, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    if name == "llava":
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        question = processor.apply_chat_template(said, add_generation_prompt=True)
    return dict(processor(images=[image], text=[question], return_tensors="pt"))


def greedy_by_hand(model, given, steps):
    """Argmax after argmax with whole forwards, no generate; returns new ids and the first logits."""
    first, new = None, []
    given = dict(given)
    for _ in range(steps):
        with torch.no_grad():
            logits = model(**given).logits[:, -1]
        first = logits if first is None else first
        token = logits.argmax(-1, keepdim=True)
        new.append(int(token))
        given["input_ids"] = torch.cat([given["input_ids"], token], 1)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        if "mm_token_type_ids" in given:
            given["mm_token_type_ids"] = torch.cat([given["mm_token_type_ids"], torch.zeros(1, 1).int()], 1)
    return new, first


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_the_stock_models(found, batch, name):
    from transformers import AutoModelForImageTextToText

    checkpoint = found(name)
    stage = opened(checkpoint)
    answers = stage.compute(batch, QUESTIONS, {})
    model = AutoModelForImageTextToText.from_pretrained(checkpoint.folder).eval()
    yes, no = (
        [stage.tokenizer.convert_tokens_to_ids(form) for form in (word, word.title(), f"Ġ{word}", f"Ġ{word.title()}")]
        for word in ("yes", "no")
    )
    for index in range(5):
        given = stock_inputs(name, checkpoint.folder, batch.images[index], OPEN)
        ids, _ = greedy_by_hand(model, given, WRITTEN)
        cell = answers[OPEN].to_pylist()[index]
        assert cell == {"text": stage.tokenizer.decode(ids, skip_special_tokens=True).strip(), "score": None}
        given = stock_inputs(name, checkpoint.folder, batch.images[index], YES_NO)
        _, logits = greedy_by_hand(model, given, 1)
        weights = logits[0, yes + no].softmax(-1)
        cell = answers[YES_NO].to_pylist()[index]
        assert cell["score"] == pytest.approx(float(weights[: len(yes)].sum()), abs=1e-5)
        assert cell["text"] == stage.tokenizer.decode(logits.argmax(-1), skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", NAMES)
def test_images_and_questions_move_the_answers(found, batch, name):
    """Else the other tests would compare constants."""
    answers = opened(found(name)).compute(batch, QUESTIONS, {})
    scores = [cell["score"] for cell in answers[YES_NO].to_pylist()[:5]]
    assert np.ptp(scores) > 0.01
    assert len({cell["text"] for cell in answers[OPEN].to_pylist()}) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_depend_on_its_neighbours(found, batch, name):
    stage = opened(found(name))
    together = stage.compute(batch, QUESTIONS, {})
    for index in range(5):
        alone = stage.compute(only(batch, index), QUESTIONS, {})
        for question in QUESTIONS:
            one, other = alone[question].to_pylist()[0], together[question].to_pylist()[index]
            assert one["text"] == other["text"]
            assert one["score"] == (other["score"] and pytest.approx(other["score"], abs=1e-5))


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_does_not_depend_on_the_other_questions(found, batch, name):
    asked = (OPEN, YES_NO, "list the red and big", "is the dog there?")
    stage = opened(found(name), asked)
    together = stage.compute(batch, asked, {})
    for question in asked[::-1]:
        alone = stage.compute(batch, [question], {})[question]
        assert alone.field("text") == together[question].field("text")
        ours, theirs = (np.array(cells.field("score").to_pylist(), float) for cells in (alone, together[question]))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_many_yes_no_questions_about_one_image_are_answered_as_one_by_one(found, batch, name, monkeypatch):
    """Together where the image's keys and values are shared, in groups of one length and of a bounded size."""
    monkeypatch.setattr("hoi_distill.stages.teacher.answers.QUESTIONS_AT_ONCE", 3)
    objs = ["bicycle", "cup", "dog", "red cup", "red dog", "red", "big dog"]
    asked = [OPEN, *(f"is there anybody {verb} a {obj}?" for verb in ("riding", "holding") for obj in objs)]
    stage = opened(found(name), asked, batch_size=1)
    generate = stage._generate
    calls: list[int] = []
    stage._generate = lambda given, *rest: (calls.append(len(given["input_ids"])), generate(given, *rest))[1]
    for index in (0, 1):
        together = stage.compute(only(batch, index), asked, {})
        assert max(calls) == 3
        assert len(calls) < len(asked) / 2 + 2
        alone = opened(found(name), asked, batch_size=1)
        for question in asked:
            ours = together[question].to_pylist()[0]
            theirs = alone.compute(only(batch, index), [question], {})[question].to_pylist()[0]
            assert ours["text"] == theirs["text"]
            assert ours["score"] == (theirs["score"] and pytest.approx(theirs["score"], abs=1e-5))
        calls.clear()


@pytest.mark.parametrize("name", NAMES)
def test_a_image_goes_through_the_tower_once_for_all_questions(found, batch, name):
    asked = (OPEN, YES_NO, "is the dog there?")
    stage = opened(found(name), asked)
    tower = next(module for key, module in stage.model.named_modules() if key in TOWERS)
    passes: list[int] = []
    tower.register_forward_hook(lambda *_: passes.append(1))
    stage.compute(batch, asked, {})
    assert len(passes) == 1


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_those_of_the_processor_class(found, batch, name):
    checkpoint = found(name)
    stage = opened(checkpoint)
    image = stage.prepare(batch.images[0])
    ours = {**stage.prompt_inputs([image], [OPEN]), **joined([image.tensors], "cpu", torch.float32)}
    stock = stock_inputs(name, checkpoint.folder, batch.images[0], OPEN)
    assert ours.keys() == stock.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, torch.as_tensor(stock[key])), key


def test_a_batch_has_the_declared_type_and_length(found, batch):
    for values in opened(found("qwen")).compute(batch, QUESTIONS, {}).values():
        assert values.type == Answers.output.type == BlipCaptions.output.type
        assert len(values) == 8
        assert values[7] == values[4]


def test_parts_that_find_their_own_size_hold_images_of_like_lengths(found, batch):
    """The longest first, by which memory is measured; the answers stand where their images do."""
    stage, plain = opened(found("qwen"), batch_size="auto"), opened(found("qwen"), batch_size=1)
    stage.rows.row_count = 2
    answer, lengths = stage._answers, []
    stage._answers = lambda images, questions: (
        lengths.append([image.tokens for image in images]),
        answer(images, questions),
    )[1]
    ours = stage.compute(batch, QUESTIONS, {})
    flat = [length for part in lengths for length in part]
    assert flat == sorted(flat, reverse=True)
    assert len(set(flat)) > 2
    for question in QUESTIONS:
        for index in range(5):
            theirs = plain.compute(only(batch, index), [question], {})[question].to_pylist()[0]
            assert ours[question].to_pylist()[index]["text"] == theirs["text"]
            assert ours[question].to_pylist()[index]["score"] == (
                theirs["score"] and pytest.approx(theirs["score"], 1e-4)
            )


def test_decoding_is_greedy_whatever_the_checkpoint_prefers(found, batch, tmp_path):
    plain = opened(found("qwen")).compute(batch, [OPEN], {})[OPEN]
    folder = shutil.copytree(found("qwen").folder, tmp_path / "sampler")
    path = folder / "generation_config.json"
    sampled = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "max_new_tokens": 2, "num_beams": 3}
    path.write_text(json.dumps({**json.loads(path.read_text()), **sampled}))
    assert opened(Checkpoint.find(folder)).compute(batch, [OPEN], {})[OPEN] == plain


def test_a_prompt_of_ones_own_changes_the_answer_and_the_table(found, batch):
    usual = opened(found("llava"))
    other = opened(found("llava"), prompt="{image} {question}")
    assert fingerprint_record(usual) != fingerprint_record(other)
    scores = [stage.compute(batch, [YES_NO], {})[YES_NO].field("score").to_pylist() for stage in (usual, other)]
    assert not np.allclose(*scores)


def test_the_fingerprint_follows_what_answers_depend_on(found):
    def record(name="qwen", columns=QUESTIONS, **options):
        return str(fingerprint_record(made(Answers, checkpoint=found(name), columns=columns, **options)))

    assert record() == record(columns=("yes or no",), batch_size="auto", gpus=0.5)
    others = [{"max_new_tokens": 9}, {"dtype": "bfloat16"}, {"max_pixels": 1024}, {"prompt": "{image}{question}"}]
    records = [record(), record("llava"), *(record(**options) for options in others)]
    assert len(set(records)) == len(records)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "preprocessor_config.json"])
def test_the_checkpoint_is_all_that_decides(found, tmp_path, name):
    folder = shutil.copytree(found("qwen").folder, tmp_path / "changed")
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert Checkpoint.find(folder).digest != found("qwen").digest


def test_the_second_tokenizer_is_in_the_digest(found, tmp_path):
    folder = shutil.copytree(found("instructblip").folder, tmp_path / "changed")
    path = folder / "qformer_tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    assert Checkpoint.find(folder).digest != found("instructblip").digest


def test_fewer_pixels_are_fewer_tokens(found, batch):
    usual, small = opened(found("qwen")), opened(found("qwen"), max_pixels=512)
    assert small.prepare(batch.images[0]).tokens < usual.prepare(batch.images[0]).tokens


def test_an_impossible_shape_is_the_images_failure(found):
    with pytest.raises(InputFailure, match="refuses"):
        opened(found("qwen")).prepare(Image.new("RGB", (2100, 8)))


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("llava", {"prompt": "{question}"}, "{image}"),
        ("instructblip", {"prompt": "say"}, "{question}"),
        ("llava", {"max_pixels": 9}, "one size"),
    ],
)
def test_an_impossible_setup_is_told_at_once(found, name, options, why):
    with pytest.raises(UserError, match=why):
        made(Answers, checkpoint=found(name), columns=QUESTIONS, **options)


def test_a_checkpoint_without_template_is_refused(found, tmp_path):
    folder = shutil.copytree(found("qwen").folder, tmp_path / "silent")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="prompt"):
        opened(Checkpoint.find(folder))
    assert opened(Checkpoint.find(folder), prompt="{image}{question}")


def test_tables_of_one_checkpoint_hold_one_model(found):
    shared: dict = {}
    long, short = (
        made(Answers, checkpoint=found("llava"), columns=QUESTIONS, max_new_tokens=length) for length in (9, 4)
    )
    for stage in (long, short):
        stage.open("cpu", shared)
    assert long.vision_key == short.vision_key
    assert long.model is short.model


def test_an_opened_stage_travels_as_plain_parameters(found, batch):
    stage = opened(found("llava"))
    sent = pickle.dumps(stage)
    assert len(sent) < 10_000
    arrived = pickle.loads(sent)
    arrived.open("cpu", {})
    assert arrived.compute(batch, [YES_NO], {}) == stage.compute(batch, [YES_NO], {})
