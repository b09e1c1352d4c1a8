"""A folder of photographs with annotations of its own."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from hoi_distill.pipeline.inputs import load_dataset
from hoi_distill.stages.data.folder import load_annotated_folder
from hoi_distill.stages.data.open_dataset import open_annotations
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.storage.errors import UserError

PAIR = {"human_box": [0, 0, 20, 40], "object_box": [10.5, 5, 64, 48], "object": "bicycle", "verbs": ["ride", "hold"]}
ALONE = {"human_box": [3, 4, 9, 9], "verbs": ["stand"]}


@pytest.fixture
def root(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png", "z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / name)
    words = Vocabulary.from_actions(
        [("bicycle", "ride", "riding"), ("bicycle", "hold", "holding"), ("kite", "hold", "holding")], "test",
        objects=("person", "kite", "bicycle"), verbs={"stand": "standing", "ride": "riding", "hold": "holding"},
    )  # fmt: skip
    words.save(tmp_path / "vocabulary.json")
    write(tmp_path, _document())
    return tmp_path


def _document():
    return {
        "vocabulary": "vocabulary.json",
        "pictures": [
            {"file_name": "sub/c.png", "pairs": [PAIR, ALONE]},
            {"file_name": "a.png", "split": "test", "width": 64, "height": 48, "pairs": [PAIR]},
            {"file_name": "b.png"},
        ],
    }


def write(root, document):
    (root / "annotations.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return root / "annotations.json"


def test_pairs_as_written_one_row_a_verb(root):
    train = load_annotated_folder(root / "annotations.json", "train")
    assert train.image_id.tolist() == ["sub/c.png", "b.png", "z.png"]  # z.png is listed nowhere: unlabelled
    assert train.pair_offsets.tolist() == [0, 3, 3, 3]
    assert train.human_box.tolist() == [[0, 0, 20, 40]] * 2 + [[3, 4, 9, 9]]
    assert train.object_box.tolist() == [[10.5, 5, 64, 48]] * 2 + [[0, 0, 0, 0]]
    assert train.object.tolist() == [2, 2, -1]
    assert train.verb.tolist() == [1, 2, 0]
    assert train.hoi.tolist() == [0, 1, -1]
    assert train.width.tolist() == [64] * 3
    assert len(train.classified().hoi) == 2


def test_splits(root):
    assert open_annotations("folder", root, None).image_id.tolist() == ["a.png"]
    assert open_annotations("folder", root / "annotations.json", "train", images=False).image_id.tolist() == [
        "sub/c.png", "b.png",
    ]  # fmt: skip
    document = _document()
    del document["pictures"][1]["split"]
    assert len(open_annotations("folder", write(root, document), None, images=False)) == 3
    assert len(open_annotations("folder", write(root, document), "test", images=False)) == 0
    assert [open_annotations("folder", write(root, d), None).split for d in (_document(), document)] == ["test", "all"]
    assert len(load_annotated_folder(root / "annotations.json", "train", limit=2)) == 2


def test_a_setup_gets_both_splits_and_only_classified_pairs(root):
    from hoi_distill.pipeline.config.schema import FolderDataset

    read = load_dataset(FolderDataset(kind="folder", root=root, annotations=root / "annotations.json"))
    assert [len(read[split].hoi) for split in ("train", "test")] == [2, 2]
    assert all((part.hoi >= 0).all() for part in read.values())


def _change(path, value):
    document = _document()
    *keys, last = path
    node = document["pictures"]
    for key in keys:
        node = node[key]
    node[last] = value
    return document


BAD = {
    "unknown verb": (_change((0, "pairs", 0), PAIR | {"verbs": ["juggle"]}), ["entry 1", "pair 1", "'juggle'"]),
    "unknown object": (_change((0, "pairs", 0), PAIR | {"object": "dragon"}), ["entry 1", "pair 1", "'dragon'"]),
    "verb misspelt": (
        _change((0, "pairs", 0), PAIR | {"verbs": ["rides"]}),
        ["unknown verb 'rides' (did you mean ride?); the vocabulary lists all verbs"],
    ),
    "object misspelt": (
        _change((0, "pairs", 0), PAIR | {"object": "by cicle"}),
        ["unknown object 'by cicle' (did you mean bicycle?); the vocabulary lists all objects"],
    ),
    "no class together": (_change((0, "pairs", 0), PAIR | {"object": "kite"}), ["ride kite is no interaction"]),
    "box outside": (
        _change((0, "pairs", 0), PAIR | {"object_box": [1, 1, 65, 9]}),
        ["object_box [1, 1, 65, 9]", "64 x 48"],
    ),
    "box inverted": (_change((0, "pairs", 0), PAIR | {"human_box": [9, 1, 1, 9]}), ["human_box [9, 1, 1, 9]"]),
    "box of text": (_change((0, "pairs", 0), PAIR | {"human_box": ["a", 1, 1, 9]}), ["human_box ['a'"]),
    "box NaN": (_change((0, "pairs", 0), PAIR | {"human_box": [float("nan"), 1, 2, 9]}), ["human_box [nan"]),
    "object without box": (_change((0, "pairs", 0), PAIR | {"object_box": None}), ["give both or neither"]),
    "no verbs": (_change((0, "pairs", 0), PAIR | {"verbs": []}), ["pair 1", "list of verbs"]),
    "pairs no list": (_change((0, "pairs"), "many"), ["entry 1 (sub/c.png)", "is not a list"]),
    "unknown split": (_change((0, "split"), "validation"), ["entry 1", "'validation' is neither"]),
    "no file name": (_change((0, "file_name"), 7), ["entry 1", "no file_name"]),
    "missing image": (_change((0, "file_name"), "gone.png"), ["entry 1", "no image", "gone.png"]),
    "repeated": (_change((2, "file_name"), "sub/c.png"), ["entry 3 repeats", "of entry 1"]),
    "repeated in the other split": (_change((1, "file_name"), "sub/c.png"), ["entry 2 repeats", "of entry 1"]),
    "unknown key of an image": (
        _change((0, "pair"), [PAIR]),
        ["entry 1 (sub/c.png)", "unknown key 'pair' (did you mean pairs?)"],
    ),
    "unknown key of a pair": (
        _change((0, "pairs", 0), PAIR | {"verb": "ride"}),
        ["pair 1", "unknown key 'verb' (did you mean verbs?)"],
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_entry_is_named_and_leniently_dropped(root, kind):
    document, said = BAD[kind]
    file = write(root, document)
    with pytest.raises(UserError) as error:
        load_annotated_folder(file, "train")
    for part in ("annotations.json", *said):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert load_annotated_folder(file, "train", lenient=True).dropped >= 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "annotations.json"),
        ("[]", "holds a list"),
        ("{}", "no list 'pictures'"),
        ('{"picture": []}', "unknown key 'picture' .did you mean pictures?"),
        ('{"vocabulary": "none.json", "pictures": []}', "none.json"),
    ],
)
def test_a_file_of_another_kind(root, content, said):
    with pytest.raises(UserError, match=said):
        load_annotated_folder(write(root, content))
    with pytest.raises(UserError, match="train and test"):
        load_annotated_folder(write(root, _document()), "val")
