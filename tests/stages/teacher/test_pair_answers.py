"""Answers about pairs are those of whole prompts put one by one, whatever is shared, and about their own image and pair."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.derived.instances import INSTANCES
from hoi_distill.stages.ops.instances import ordered_pairs
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.pair_answers import PairAnswers
from hoi_distill.stages.teacher.pair_gates import Gate
from hoi_distill.stages.teacher.pair_views import VIEWS
from hoi_distill.stages.teacher.shared_prefix import Branch, Packed, in_chunks
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made
from tests.fixtures.toy_stages import Album, plan_of, run

WORDS = Vocabulary.from_actions(
    [
        ("bicycle", "hold", "holding"), ("bicycle", "no_interaction", "no_interaction"), ("bicycle", "ride", "riding"),
        ("boat", "ride", "riding"), ("cup", "hold", "holding"), ("person", "hug", "hugging"),
    ],
    "the test",
)  # fmt: skip
COLUMNS = tuple(WORDS.pair_questions())
PERSON, BICYCLE, BOAT, CUP = (WORDS.objects.index(name) for name in ("person", "bicycle", "boat", "cup"))
NAMES = ("llava", "qwen")


def instances(labels, seed=0, width=80, height=60):
    """A cell of boxes that lie anywhere."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, (width - 20, height - 20), (len(labels), 2))
    boxes = np.concatenate((corners, corners + random.integers(5, 20, (len(labels), 2))), 1)
    humans = sum(label == PERSON for label in labels)
    return {"boxes": boxes.tolist(), "labels": list(labels), "humans": humans, "width": width, "height": height}


SCENE = instances([PERSON, PERSON, BICYCLE, BICYCLE, BOAT, CUP])


def image(seed=0, width=80, height=60):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


@pytest.fixture(scope="module")
def opened(families):
    def stage(name="qwen", **keys):
        keys = {"checkpoint": Checkpoint.find(families(name)), "columns": COLUMNS, **keys}
        found = made(PairAnswers, vocabulary=WORDS, **keys)
        found.open("cpu", {})
        return found

    return stage


def answered(stage, seen, boxes=SCENE, columns=COLUMNS):
    batch = Batch(np.zeros(1, "V16"), ["x"], 1, [seen])
    with torch.inference_mode():
        found = stage.compute(batch, columns, {"instances": {"value": pa.array([boxes], INSTANCES)}})
    assert all(values.type == PairAnswers.output.type for values in found.values())
    return {column: values.to_pylist()[0] for column, values in found.items()}


def flat(cells):
    """Every answer by column and pair."""
    return {
        (column, pair): (cell["yes"][at], cell["no"][at])
        for column, cell in cells.items()
        for at, pair in enumerate(cell["pair"])
    }


def assert_alike(ours, theirs, atol=1e-5):
    ours, theirs = flat(ours), flat(theirs)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose([ours[key] for key in theirs], [*theirs.values()], atol=atol)


def stock(stage, seen, question, where):
    """The stock model's answer to a whole prompt, with the image, by a forward of its own."""
    given, said = stage.prepare(seen), f"{where} {question}"
    ids = stage.speaker.prompt_ids(said)
    at = ids.index(stage.speaker.image_id)
    ids = torch.tensor([[*ids[:at], *[stage.speaker.image_id] * given.tokens, *ids[at + 1 :]]])
    kinds = {"mm_token_type_ids": (ids == stage.speaker.image_id).int()} if stage.speaker.is_qwen else {}
    with torch.inference_mode():
        logits = stage.model(input_ids=ids, attention_mask=torch.ones_like(ids), **kinds, **given.tensors).logits[0, -1]
    probability = logits.softmax(-1)
    tokens = stage.speaker.tokenizer.convert_tokens_to_ids
    return [
        float(sum(probability[tokens(form)] for form in (word, word.title(), f"Ġ{word}", f"Ġ{word.title()}")).log())
        for word in ("yes", "no")
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_is_the_stock_models_to_the_whole_prompt(opened, name):
    stage, seen = opened(name), image()
    cells = answered(stage, seen)
    boxes = stage.boxes(stage.prepare(seen), SCENE)
    pairs, checked = ordered_pairs(2, 6), 0
    for (column, pair), logs in flat(cells).items():
        human, thing = pairs[pair].tolist()
        label = SCENE["labels"][thing]
        verb = column.split(":")[0]
        what = {PERSON: "another person", BICYCLE: "a bicycle", BOAT: "a boat", CUP: "a cup"}[label]
        doing = {"hold": "holding", "hug": "hugging", "ride": "riding in" if label == BOAT else "riding"}[verb]
        this = {PERSON: "this other person", BICYCLE: "this bicycle", BOAT: "this boat", CUP: "this cup"}[label]
        where = f"A person is at {boxes[human]} and {what} is at {boxes[thing]}."
        asked = f"Is this person {doing} {this}? Answer with yes or no."
        np.testing.assert_allclose(logs, stock(stage, seen, asked, where), atol=1e-5)
        checked += 1
    assert checked == 2 + 2 * (2 + 1) + 2 * (2 + 1)  # hugging; riding bicycles and a boat; holding bicycles and a cup
    values = np.array([*flat(cells).values()])
    assert np.ptp(values[:, 0] - values[:, 1]) > 0.01, "else constants were compared"


@pytest.mark.parametrize("name", NAMES)
def test_no_one_and_two_levels_of_sharing_say_the_same(opened, name):
    stage = opened(name)
    given = stage.prepare(image(1))
    questions = stage.questions(given, SCENE, COLUMNS)
    with torch.inference_mode():
        none = stage.one_by_one(given, questions)
        for levels in (1, 2):
            np.testing.assert_allclose(stage.as_tree(given, questions, levels), none, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 60, 200])
def test_the_size_of_a_chunk_does_not_matter(opened, budget):
    assert_alike(answered(opened(tokens_at_once=budget), image()), answered(opened(), image()))


def test_the_order_of_questions_does_not_matter(opened):
    backwards = answered(opened(), image(), columns=COLUMNS[::-1])
    assert_alike(backwards, answered(opened(), image()))
    for column in COLUMNS:
        assert_alike(answered(opened(), image(), columns=[column]), {column: backwards[column]})


@pytest.mark.parametrize("name", NAMES)
def test_two_images_of_one_size_do_not_mix(opened, name):
    """Neither one after the other in one stage, nor by what is kept of the one before."""
    stage = opened(name)
    first, second = image(1), image(2)
    before = answered(stage, first)
    assert not np.allclose([*flat(before).values()], [*flat(answered(stage, second)).values()], atol=1e-3)
    assert_alike(answered(stage, first), before, atol=0)
    assert_alike(answered(opened(name), second), answered(stage, second), atol=0)


def test_images_of_two_shapes_one_after_the_other_have_their_own_positions(opened):
    stage, wide = opened(), image(1, 120, 40)
    boxes = instances(SCENE["labels"], 1, 120, 40)
    alone = answered(opened(), wide, boxes)
    answered(stage, image())
    assert_alike(answered(stage, wide, boxes), alone)


def test_an_image_goes_through_the_tower_once_and_each_pairs_boxes_are_read_once(opened):
    stage, towers, read = opened(tokens_at_once=10_000), [], []
    tower = stage.model.model.visual.register_forward_hook(lambda *_: towers.append(1))
    decoder = stage.model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, given: read.append(given.get("input_ids")), with_kwargs=True
    )
    given = stage.prepare(image())
    questions = stage.questions(given, SCENE, COLUMNS)
    with torch.inference_mode():
        stage.as_tree(given, questions)
    tower.remove()
    decoder.remove()
    assert len(towers) == 1
    (ids,) = [each for each in read if each is not None]
    comma = stage.speaker.tokenizer.convert_tokens_to_ids(",")
    asked, pairs = len(questions), len({each.number for each in questions})
    assert asked > pairs
    assert int((ids == comma).sum()) == 6 * pairs, "six commas in two boxes, none in a question"


def test_as_many_pairs_as_upt_allows_are_asked_within_the_bound(opened):
    """15 people and 15 objects are 435 pairs."""
    stage = opened(tokens_at_once=500)
    longest = []
    leaves = stage.leaves
    stage.leaves = lambda trunk, offset, branches, answers: (
        longest.append(sum(branch.tokens for branch in branches)),
        leaves(trunk, offset, branches, answers),
    )[1]
    boxes = instances([PERSON] * 15 + [CUP] * 15)
    found = answered(stage, image(), boxes)
    assert {column.split(":")[0]: len(cell["pair"]) for column, cell in found.items()} == {
        "hold": 225, "hug": 210, "ride": 0,
    }  # fmt: skip
    assert len(longest) > 10
    assert max(longest) <= 500
    assert np.isfinite([*flat(found).values()]).all()


def test_nobody_to_ask_about_is_an_empty_cell(opened):
    for boxes in (instances([]), instances([PERSON]), instances([CUP, BICYCLE])):
        assert flat(answered(opened(), image(), boxes)) == {}


def test_memory_that_runs_out_halves_the_chunk_and_loses_no_answer(opened):
    stage, plain = opened(), answered(opened(), image())
    leaves, tried = stage.leaves, []

    def short_of_memory(trunk, offset, branches, answers):
        tried.append(sum(branch.tokens for branch in branches))
        if tried[-1] > 150:
            raise torch.OutOfMemoryError
        return leaves(trunk, offset, branches, answers)

    stage.leaves = short_of_memory
    assert_alike(answered(stage, image()), plain)
    assert tried[0] > 150
    stage.leaves = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError)
    with pytest.raises(torch.OutOfMemoryError):
        answered(stage, image())


def test_memory_that_runs_out_in_a_later_layer_loses_no_answer(opened):
    """The cache of the layers below has grown by then, and that of the layers above has not."""
    stage, plain, failed = opened(), answered(opened(), image()), []
    *_, last = stage.model.get_decoder().layers

    def once(module, given):
        if given[0].shape[1] > 60 and not failed and stage.trunks == 1:
            failed.append(given[0].shape[1])
            raise torch.OutOfMemoryError

    trunk, stage.trunks = stage.trunk, 0

    def counted(*given):
        made = trunk(*given)
        stage.trunks += 1
        return made

    stage.trunk = counted
    hook = last.register_forward_pre_hook(once)
    try:
        assert_alike(answered(stage, image()), plain)
    finally:
        hook.remove()
    assert failed
    assert stage.trunks == 2


def test_a_prompt_that_asks_before_it_shows_the_image_shares_nothing(opened):
    before = opened("llava", prompt="{question} {image} ASSISTANT:")
    assert before.whole
    assert not opened("llava").whole


def test_boxes_are_written_as_each_family_was_taught(opened):
    boxes = instances([PERSON, CUP], width=80, height=60)
    boxes["boxes"] = [[0, 0, 80, 60], [20, 15, 40, 30]]
    seen = image()
    qwen, llava = opened("qwen"), opened("llava")
    width, height = qwen.seen_size(qwen.prepare(seen))
    assert (width, height) != (80, 60)
    assert qwen.boxes(qwen.prepare(seen), boxes) == [
        f"[0, 0, {width}, {height}]",
        f"[{width // 4}, {height // 4}, {width // 2}, {height // 2}]",
    ]
    assert llava.boxes(llava.prepare(seen), boxes)[1] == "[0.25, 0.25, 0.50, 0.50]"
    thousand = opened("qwen", coordinates="thousandths")
    assert thousand.boxes(thousand.prepare(seen), boxes)[1] == "[250, 250, 500, 500]"


def test_branches_share_what_is_alike_and_chunks_keep_every_leaf():
    branch = Branch.of([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]])
    assert (list(branch.shared), [list(leaf) for leaf in branch.leaves]) == ([1, 2], [[3, 4], [5], [3]])
    assert list(Branch.of([[7, 8]]).leaves[0]) == [8]
    for budget in range(1, 12):
        chunks = list(in_chunks([branch, Branch([9], [[1], [2]])], budget))
        assert [leaf for chunk in chunks for each in chunk for leaf in each.leaves] == [[3, 4], [5], [3], [1], [2]]
        assert all(sum(each.tokens for each in chunk) <= max(budget, 4) for chunk in chunks)
    packed = Packed.of([branch, Branch([9], [[1], [2]])])
    assert packed.depth.tolist() == [0, 1, 2, 3, 2, 2, 0, 1, 1]
    assert packed.ends.tolist() == [3, 4, 5, 7, 8]
    assert [np.flatnonzero(row).tolist() for row in packed.sees()] == [
        [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 5], [6], [6, 7], [6, 8],
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_likelihood_is_that_of_the_whole_answer_with_the_image_and_without_it(opened, name):
    stage, seen = opened(name, form="likelihood"), image()
    cells = answered(stage, seen)
    given, boxes = stage.prepare(seen), stage.boxes(stage.prepare(seen), SCENE)
    pairs, checked = ordered_pairs(2, 6), 0
    said = {("ride", BICYCLE): "riding a bicycle", ("ride", BOAT): "riding in a boat", ("hold", CUP): "holding a cup"}
    for (column, pair), logs in flat(cells).items():
        human, thing = pairs[pair].tolist()
        label = SCENE["labels"][thing]
        if (answer := said.get((column.split(":")[0], label))) is None:
            continue
        what = {BICYCLE: "a bicycle", BOAT: "a boat", CUP: "a cup"}[label]
        prompt = f"A person is at {boxes[human]} and {what} is at {boxes[thing]}. What is this person doing?"
        words = stage.speaker.tokenizer(answer, add_special_tokens=False)["input_ids"]
        words = words[1:] if words[0] == stage.speaker.tokenizer.bos_token_id else words
        ids = stage.speaker.prompt_ids(prompt)
        for value, before, pixels in ((logs[0], stage.widened(ids, given), given.tensors), (logs[1], ids, {})):
            total = 0.0
            kept = [each for each in before if pixels or each != stage.speaker.image_id]
            for word in words:  # one forward a token
                with torch.inference_mode():
                    logits = stage.model(**stage.given(kept), **pixels).logits[0, -1]
                total += float(logits.log_softmax(-1)[word])
                kept = [*kept, word]
            assert value == pytest.approx(total, abs=1e-4)
        checked += 1
    assert checked == 2 * (2 + 1 + 1)
    assert np.ptp([yes - no for yes, no in flat(cells).values()]) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_likelihoods_do_not_depend_on_what_is_shared_or_chunked(opened, name):
    stage = opened(name, form="likelihood")
    given = stage.prepare(image(1))
    questions = stage.questions(given, SCENE, COLUMNS)
    with torch.inference_mode():
        none = stage.one_by_one(given, questions)
        for levels in (1, 2):
            np.testing.assert_allclose(stage.as_tree(given, questions, levels), none, atol=1e-5)
    plain = answered(stage, image())
    assert_alike(answered(opened(name, form="likelihood", tokens_at_once=60), image()), plain)


def test_the_fingerprint_follows_what_answers_depend_on(families):
    def record(name="qwen", columns=COLUMNS, **keys):
        keys = {"checkpoint": Checkpoint.find(families(name)), "columns": columns, **keys}
        return str(fingerprint_record(made(PairAnswers, vocabulary=WORDS, **keys)))

    gates = (Gate("prior", "detections", 0.05),)
    assert record() == record(columns=COLUMNS[:1], tokens_at_once=7, gpus=0.5, gates=gates, audit=0.1)
    keys = [
        {"marks": "{object}: {person_box} {object_box}"}, {"question": "{action}?"}, {"coordinates": "fractions"},
        {"dtype": "bfloat16"}, {"max_pixels": 1024}, {"prompt": "{image}{question}"}, {"view": "blur"}, {"view": "crop"},
        {"form": "likelihood"},
    ]  # fmt: skip
    assert len({record(), record("llava"), *(record(**key) for key in keys)}) == 11


def test_wrong_keys_are_told(families):
    def wrong(name="qwen", **keys):
        found = {"checkpoint": Checkpoint.find(families(name)), "columns": COLUMNS, **keys}
        with pytest.raises(UserError) as told:
            made(PairAnswers, vocabulary=WORDS, **found)
        return str(told.value)

    assert "InstructBlipForConditionalGeneration cannot be asked about pairs" in wrong("instructblip")
    assert "'is there anybody?' is no question about pairs" in wrong(columns=("is there anybody?",))
    assert "must hold {object_box} once" in wrong(marks="{person_box} {object}")
    assert "view: crop shows a part" in wrong(view="crop", marks="{object} {object_box}")
    assert "must hold {action} once" in wrong(question="Is it?")
    assert "leave {action} out" in wrong(form="likelihood", question="Is this person {action}?")
    assert "least is 2 for detections; it is a probability" in wrong(gates=(Gate("prior", "detections", 2),))


def test_an_answer_that_cannot_follow_the_prompt_is_told_before_any_image(opened, monkeypatch):
    """A tokenizer that makes one token of the prompt's end and what follows it."""
    encoded = PairAnswers.encoded
    monkeypatch.setattr(
        PairAnswers, "encoded", lambda stage, texts: [[*ids[:-1], len(ids)] for ids in encoded(stage, texts)]
    )
    with pytest.raises(UserError, match="and an answer are one token; end it in another way"):
        opened(form="likelihood")
    opened()


@pytest.mark.parametrize("view", ["blur", "crop"])
def test_a_view_of_each_pair_is_asked_about_as_an_image_of_its_own(opened, view):
    stage, seen = opened(view=view, columns=COLUMNS[:2]), image()
    found = answered(stage, seen, columns=COLUMNS[:2])
    pairs, boxes, whole = ordered_pairs(2, 6), np.array(SCENE["boxes"]), opened(columns=COLUMNS[:2])
    for (column, pair), logs in list(flat(found).items())[::3]:
        human, thing = pairs[pair].tolist()
        label = SCENE["labels"][thing]
        what = {PERSON: "another person", BICYCLE: "a bicycle", CUP: "a cup"}[label]
        this = {PERSON: "this other person", BICYCLE: "this bicycle", CUP: "this cup"}[label]
        doing = "hugging" if column.startswith("hug") else "holding"
        shown = VIEWS[view](seen, boxes[human], boxes[thing])
        where = f"A person and {what} are in {'focus' if view == 'blur' else 'the image'}."
        asked = f"Is this person {doing} {this}? Answer with yes or no."
        np.testing.assert_allclose(logs, stock(whole, shown, asked, where), atol=1e-5)


def test_views_keep_the_pair_and_blur_or_leave_out_the_rest():
    seen = image(3)
    human, thing = np.array([10, 10, 30, 50]), np.array([40, 20, 60, 40])
    before, after = (np.asarray(each) for each in (seen, VIEWS["blur"](seen, human, thing)))
    mask = np.zeros(before.shape[:2], bool)
    mask[10:50, 10:30] = mask[20:40, 40:60] = True
    np.testing.assert_array_equal(after[mask], before[mask])
    assert (after[~mask] != before[~mask]).mean() > 0.9
    assert after[~mask].std() < before[~mask].std() / 2
    np.testing.assert_array_equal(np.asarray(VIEWS["crop"](seen, human, thing)), before[3:57, 3:67])
    assert VIEWS["crop"](seen, np.array([80, 60, 80, 60]), np.array([80, 60, 80, 60])).size == (1, 1)
    assert VIEWS["blur"](seen, human * 0, thing * 0).size == seen.size


CATEGORY = {"person": 1, "bicycle": 2, "cup": 47}


@pytest.fixture
def line(tmp_path, families):
    """Three images, their given boxes, and what is asked about their pairs."""
    album = Album(tmp_path, images=3)
    WORDS.save(tmp_path / "words.json")
    album.config["dataset"]["vocabulary"] = str(tmp_path / "words.json")
    album.config["tables"] = {
        "detections": {"stage": "detections_file", "path": str(tmp_path / "boxes.json")},
        "instances": {"stage": "instances"},
        "pair_answers": {
            "stage": "pair_answers", "checkpoint": str(families("qwen")), "columns": list(COLUMNS[:2]),
            "question": "Is this person {action}?",
        },
    }  # fmt: skip
    boxes = [
        {"image_id": f"00{row}.png", "category_id": CATEGORY[name], "bbox": [5 * at, 0, 5, 5], "score": 0.9 - 0.1 * at}
        for row, names in enumerate([("person", "bicycle"), ("person", "person", "cup"), ("cup", "bicycle")])
        for at, name in enumerate(names)
    ]
    return album, boxes


def ran(album, boxes):
    (album.root / "boxes.json").write_text(json.dumps(boxes))
    album.write()
    found = {name: cells for name, cells in run(album.workspace()).cells.items() if cells}
    assert all(table.complete() for table in plan_of(album.workspace()).values())
    return found


def test_only_what_changed_is_asked_again(line):
    album, boxes = line
    assert ran(album, boxes) == {"detections": 3, "instances": 3, "pair_answers": 3}  # hold; hold and hug; nobody
    boxes[0]["score"] = 0.5
    assert ran(album, boxes) == {"detections": 1, "instances": 1}, "no score is seen by the teacher"
    boxes[1]["bbox"] = [5, 3, 5, 5]
    assert ran(album, boxes) == {"detections": 1, "instances": 1, "pair_answers": 1}, "one row"
    album.config["tables"]["pair_answers"]["columns"] = list(COLUMNS)
    assert ran(album, boxes) == {"pair_answers": 1}, "one column, where somebody could ride"
    boxes.append({"image_id": "001.png", "category_id": CATEGORY["bicycle"], "bbox": [1, 9, 6, 6], "score": 0.8})
    assert ran(album, boxes) == {"detections": 1, "instances": 1, "pair_answers": 3}
    assert ran(album, boxes) == {}


def test_gates_choose_cells_are_recorded_and_change_no_cell(line):
    album, boxes = line
    table = album.config["tables"]["pair_answers"]
    table.update(gates=[{"by": "prior", "table": "detections", "least": 0.715}], audit=0.0)
    assert ran(album, boxes) == {"detections": 3, "instances": 3, "pair_answers": 2}  # .9 * .8; the two people
    found = plan_of(album.workspace())["pair_answers"].table
    (record,) = found.records()
    assert record.header["provenance"]["gates"] == [{"by": "prior", "table": "detections", "least": 0.715}]
    del table["gates"]
    assert ran(album, boxes) == {"pair_answers": 1}, "what was spared, and nothing twice"


def test_what_the_gates_spare_is_audited_by_a_share_that_is_always_the_same(line, families):
    keys = {"checkpoint": Checkpoint.find(families("qwen")), "columns": COLUMNS}
    never = (Gate("prior", "detections", 1.0),)
    cells = [instances([PERSON, PERSON, BICYCLE, CUP], seed) for seed in range(200)]
    scenes = pa.array(cells, INSTANCES)
    detected = pa.array([{"scores": [0.5] * 4, "labels": cell["labels"]} for cell in cells])

    def chosen(audit, columns=COLUMNS):
        stage = made(PairAnswers, vocabulary=WORDS, **{**keys, "columns": columns}, gates=never, audit=audit)
        return stage.select_cells({"instances": {"value": scenes}, "detections": {"value": detected}})

    assert not chosen(0.0).any()
    few, more = chosen(0.05), chosen(0.2)
    assert 0.02 < few.mean() < 0.09
    assert (few <= more).all(), "a larger share asks the same and more"
    np.testing.assert_array_equal(chosen(0.2, COLUMNS[1:]), more[:, 1:])
