"""Yes/no questions: in whose words, about what, and what is asked again when something changes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from hoi_distill.pipeline.graph.builder import build_stage
from hoi_distill.pipeline.reports.folder import write_page
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.stages.teacher.answers import Answers
from hoi_distill.stages.teacher.blip.first_token import YES_NO
from hoi_distill.stages.teacher.blip.first_token_scorer import FirstTokenScorer
from hoi_distill.stages.teacher.blip.stages import BlipCaptions
from hoi_distill.stages.teacher.pico.training import captions
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from tests.fixtures.stages import made
from tests.fixtures.toy_stages import Album, plan_of, run

ROOM = Path(__file__).parents[3] / "stages"
CAPTIONER, MATCHER = str(ROOM / "teacher/pico/caption"), str(ROOM / "teacher/pico/itm")
VOCABULARIES = ROOM / "data" / "vocabularies"
PICO = Vocabulary.load(VOCABULARIES / "pico.json")
RIDING, CUP = "is there anybody riding a bicycle?", "is there anybody holding a cup?"
CATEGORY = {"person": 1, "bicycle": 2, "cup": 47}


@pytest.mark.parametrize("name", ["pico", "hico", "v_coco", "swig_hoi"])
def test_every_interaction_but_no_interaction_has_a_question_of_its_own(name):
    words = Vocabulary.load(VOCABULARIES / f"{name}.json")
    asked = words.questions()
    silent = [hoi for hoi in range(len(words)) if words.hoi_name(hoi)[0] == "no_interaction"]
    assert sorted([*asked.values(), *silent]) == list(range(len(words)))
    assert all(YES_NO.search(question) for question in asked)


def test_the_questions_are_those_that_the_pico_teacher_was_taught():
    assert list(PICO.questions()) == [captions.question(*PICO.hoi_name(hoi)) for hoi in PICO.questions().values()]


def context():
    return StageContext(PICO, {"train": None}, lambda paths: np.zeros(len(paths), "V16"))


def captioner(**table):
    return build_stage("blip_captions", {"checkpoint": CAPTIONER, **table}, context(), "here")


def test_a_configuration_says_verification_questions():
    made = captioner(columns="verification_questions", asked_where={"table": "boxes"})
    assert made.columns == tuple(PICO.questions())
    assert made.inputs == ("boxes",)
    assert made.asked_where.least == 0.1
    assert fingerprint_record(made) == fingerprint_record(captioner(columns=["a photo of"])), "one table of captions"


def test_what_cannot_be_chosen_by_objects_is_refused():
    with pytest.raises(UserError, match="'a photo of' is no question about an interaction"):
        captioner(columns=["a photo of", RIDING], asked_where={"table": "boxes"})
    with pytest.raises(UserError, match=r"asked_where\.lest: unknown key"):
        captioner(columns=[RIDING], asked_where={"table": "boxes", "lest": 0.2})


@pytest.mark.parametrize("name", ["llava", "instructblip"])
def test_an_instruction_follows_the_questions_that_want_yes_or_no(families, name):
    found = Checkpoint.find(families(name))
    plain = made(
        Answers,
        checkpoint=found,
        columns=(RIDING, "what"),
        prompt=None if name == "instructblip" else "{image}{question}",
    )
    told = made(Answers, checkpoint=found, columns=plain.columns, prompt=plain.prompt, instruction="yes or no")
    for stage in (plain, told):
        stage.open("cpu", {})
    assert told.prompt_ids("what") == plain.prompt_ids("what")
    assert told.prompt_ids(RIDING) == plain.prompt_ids(f"{RIDING} yes or no")
    assert fingerprint_record(told) != fingerprint_record(plain)


def test_questions_put_together_are_answered_as_one_by_one():
    """Of several lengths, against the decoder's own forward; and an image is not its neighbour."""
    stage = made(BlipCaptions, checkpoint=Checkpoint.find(CAPTIONER), columns=tuple(PICO.questions()))
    stage.open("cpu", {})
    config = stage.model.config
    image = torch.randn(3, 65, config.vision_config.hidden_size, generator=torch.Generator().manual_seed(0))
    lengths = [len(ids) for ids in stage.scorer.token_ids(stage.columns)]
    assert len(set(lengths)) > 1
    together = stage._answers(image, stage.columns)
    yes, no = stage.tokenizer.convert_tokens_to_ids(["yes", "no"])
    for question in (stage.columns[lengths.index(max(lengths))], stage.columns[lengths.index(min(lengths))]):
        ids = stage._question_ids(question).expand(3, -1)
        with torch.inference_mode():
            logits = stage.model.text_decoder(input_ids=ids, encoder_hidden_states=image).logits[:, -1]
        stock = torch.sigmoid(logits[:, yes] - logits[:, no]).numpy()
        cells = together[question].to_pylist()
        np.testing.assert_allclose([cell["score"] for cell in cells], stock, atol=1e-5)
        assert [cell["text"] for cell in cells] == stage.tokenizer.batch_decode(logits.argmax(-1, keepdim=True))
        assert np.ptp(stock) > 1e-6


SEEN = {
    "000.png": {"person": 0.9, "bicycle": 0.5},
    "001.png": {"person": 0.9, "cup": 0.1},
    "002.png": {"bicycle": 0.9, "cup": 0.09},
    "003.png": {},
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Four images, their given boxes, and everything above a student, filled; each test changes a copy."""
    root = tmp_path_factory.mktemp("verification")
    album = Album(root, images=4)
    album.config["dataset"]["vocabulary"] = str(VOCABULARIES / "pico.json")
    write_boxes(root, SEEN)
    teller = {"stage": "blip_captions", "checkpoint": CAPTIONER, "max_new_tokens": 12, "batch_size": 4}
    told = ["a photo of", "list the interactions:"]
    album.config["tables"] = {
        "detections": {"stage": "detections_file", "path": str(root / "boxes.json")},
        "captions": {**teller, "columns": told},
        "verification": {**teller, "columns": "verification_questions", "asked_where": {"table": "detections"}},
        "triplets": {"stage": "triplets", "columns": told},
        "labels": {"stage": "image_labels", "texts": told, "verification": "verification"},
        "context": {"stage": "sentence_embeddings", "checkpoint": MATCHER, "question": "a photo of"},
    }
    album.write()
    asked = []
    score = FirstTokenScorer.score

    def counted(self, image, prompts):
        asked.append((len(image), tuple(prompts)))
        return score(self, image, prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FirstTokenScorer, "score", counted)
        summary = run(album.workspace())
    return album, asked, summary


@pytest.fixture
def album(filled, tmp_path):
    original = filled[0]
    shutil.copytree(original.root, tmp_path, dirs_exist_ok=True)
    copy = Album.__new__(Album)
    copy.root, copy.path, copy.folder = tmp_path, tmp_path / "album.yaml", tmp_path / "pictures"
    copy.config = json.loads(json.dumps(original.config).replace(str(original.root), str(tmp_path)))
    copy.write()
    return copy


def write_boxes(root, seen):
    boxes = [
        {"image_id": name, "category_id": CATEGORY[label], "bbox": [1, 1, 8, 8], "score": score}
        for name, found in seen.items()
        for label, score in found.items()
    ]
    (root / "boxes.json").write_text(json.dumps(boxes))


def about(*objects):
    names = {question: PICO.hoi_name(hoi)[1] for question, hoi in PICO.questions().items()}
    return tuple(question for question, name in names.items() if name in objects)


def test_only_what_concerns_a_detected_object_is_asked(filled):
    album, asked, summary = filled
    assert Counter(asked) == Counter({(1, about("bicycle")): 1, (1, about("cup")): 1})
    made = plan_of(album.workspace())
    assert made["verification"].complete()
    assert made["verification"].counts["wanted"] == summary.cells["verification"] == len(about("bicycle", "cup"))
    assert summary.cells["labels"] == 4, "labels wait for no answer that nobody wants"


def labels_of(album):
    workspace = album.workspace()
    made = plan_of(workspace)["labels"]
    cells = made.table.read(CellSelection(workspace.sources["images"].ids[made.rows], ("value",), made.cells.inputs))[
        "value"
    ]
    return dict(zip(workspace.sources["images"].keys, cells.to_pylist(), strict=True))


def test_labels_list_what_was_asked_and_what_remains(filled):
    found = labels_of(filled[0])
    names = {name: {PICO.hoi_name(hoi)[1] for hoi in cell["hoi"]} for name, cell in found.items()}
    assert names == {"000.png": {"bicycle"}, "001.png": {"cup"}, "002.png": set(), "003.png": set()}
    hois = {PICO.hoi_name(hoi)[0] for hoi in found["000.png"]["hoi"]}
    assert "no_interaction" in hois
    assert len(hois) == len(about("bicycle")) + 1


def ran(album):
    return {name: cells for name, cells in run(album.workspace()).cells.items() if cells}


def test_nothing_changed_nothing_runs(album):
    assert ran(album) == {}


def test_another_interaction_question_reruns_its_column_its_triplets_and_the_labels_alone(album):
    tables, old, new = album.config["tables"], "list the interactions:", "a photo of a person riding a bicycle and"
    for table, key in (("captions", "columns"), ("triplets", "columns"), ("labels", "texts")):
        tables[table][key][tables[table][key].index(old)] = new
    album.write()
    made = plan_of(album.workspace())
    assert {
        name: each.counts["empty"] + each.counts["unknown"] for name, each in made.items() if not each.complete()
    } == {
        "captions": 4,
        "triplets": 4,
        "labels": 4,
    }
    assert [reason.text for reason in made["captions"].reasons] == ["new columns"]
    assert ran(album) == {"captions": 4, "triplets": 4, "labels": 4}
    ride = next(hoi for question, hoi in PICO.questions().items() if question == RIDING)
    found = labels_of(album)["000.png"]
    assert found["target"][found["hoi"].index(ride)] >= 0.5


def test_the_order_in_which_texts_are_read_changes_no_label(album):
    before = labels_of(album)
    tables = album.config["tables"]
    for table, key in (("captions", "columns"), ("triplets", "columns"), ("labels", "texts")):
        tables[table][key] = list(reversed(tables[table][key]))
    album.write()
    assert set(ran(album)) <= {"labels"}
    assert labels_of(album) == before


def test_a_box_more_asks_about_its_object_and_a_box_less_asks_nothing(album):
    write_boxes(album.root, {**SEEN, "000.png": {"person": 0.9, "bicycle": 0.5, "cup": 0.4}})
    again = ran(album)
    assert again == {"detections": 1, "verification": len(about("cup")), "labels": 1}
    write_boxes(album.root, {**SEEN, "000.png": {"person": 0.9}})
    again = ran(album)
    assert again == {"detections": 1, "labels": 1}, "answers that nobody wants any more are not read"
    assert labels_of(album)["000.png"]["hoi"] == []
    write_boxes(album.root, SEEN)
    assert ran(album) == {}, "all of it is there"


def test_a_page_shows_what_was_asked_and_counts_what_was_denied(album, tmp_path):
    write_page(album.workspace(), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "list the interactions:" in page
    assert "answered no" in page
    assert "more questions" in page
    with pytest.raises(UserError, match=r"--out .*: a folder; name the file to write"):
        write_page(album.workspace(), tmp_path)
