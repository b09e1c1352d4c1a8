"""SWiG-HOI's files: records, label space, and bad entries named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hoi_distill.stages.data.swig_hoi import load_swig_hoi, swig_evaluated, swig_frequency, swig_vocabulary
from hoi_distill.storage.errors import UserError
from tests.fixtures.swig_files import records, write


def test_the_label_space_has_the_published_sizes():
    vocabulary = swig_vocabulary()
    assert (len(vocabulary.objects), len(vocabulary.verbs), len(vocabulary)) == (1000, 407, 14130)
    assert vocabulary.objects[0] == "person"
    assert len(np.unique(vocabulary.hois[:, 0])) == 406
    evaluated, frequency = swig_evaluated(), swig_frequency()
    assert evaluated.sum() == 5539
    assert [(evaluated & (frequency == kind)).sum() for kind in (0, 1, 2)] == [1391, 2841, 1307]
    assert (frequency[~evaluated] > 0).all()


def test_names_that_the_dataset_has_twice_are_told_apart():
    vocabulary = swig_vocabulary()
    assert len(set(vocabulary.objects)) == 1000
    assert [name for name in vocabulary.objects if name.startswith("mouse")] == ["mouse", "mouse_(rodent)"]
    assert vocabulary.hoi_name(1) == ("surfing", "surfboard")
    assert vocabulary.prompt(1) == "a photo of a person surfing a surfboard"


def test_the_vocabulary_survives_saving(tmp_path):
    swig_vocabulary().save(tmp_path / "saved.json")
    assert type(swig_vocabulary()).load(tmp_path / "saved.json") == swig_vocabulary()


def test_a_record_is_a_image_with_its_pairs_boxes_clipped(tmp_path):
    found = load_swig_hoi(write(tmp_path, records()), "test", images=False)
    assert found.image_id.tolist() == ["surfing_1.jpg", "idle_2.jpg"]
    assert found.pair_offsets.tolist() == [0, 1, 1]
    assert (found.object.tolist(), found.verb.tolist(), found.hoi.tolist()) == ([55], [349], [1])
    assert found.human_box.tolist() == [[10, 10, 40, 60]]
    assert found.object_box.tolist() == [[5, 50, 60, 80]]
    assert (found.width.tolist(), found.height.tolist()) == ([100, 60], [80, 50])
    assert (found.name, found.split, found.dropped) == ("swig-hoi", "test", 0)


@pytest.mark.parametrize(
    "name", ["annotations/swig_val_1000.json", "swig_val_1000.json", "swig_hoi/swig_val_1000.json"]
)
def test_the_file_is_found_where_people_have_it(tmp_path, name):
    root = write(tmp_path, records(), name)
    for source, split in ((root, "val"), (root / name, "val"), (root / name, None)):
        found = load_swig_hoi(source, split, images=False)
        assert (len(found), found.split) == (2, "val")
    with pytest.raises(UserError, match=r"no swig_train_1000\.json in"):
        load_swig_hoi(root, "train")
    with pytest.raises(UserError, match="the file of the split val, not of test"):
        load_swig_hoi(root / name, "test")
    with pytest.raises(UserError, match="not 'dev'"):
        load_swig_hoi(root, "dev")


def test_images_lie_in_images_512(tmp_path):
    root = write(tmp_path, records())
    with pytest.raises(UserError, match=r"images_512: no such folder"):
        load_swig_hoi(root, "test")
    (root / "images_512").mkdir()
    Image.new("RGB", (60, 50)).save(root / "images_512" / "idle_2.jpg")
    with pytest.raises(UserError, match=r"entry 0: no image .*surfing_1\.jpg"):
        load_swig_hoi(root, "test")
    found = load_swig_hoi(root, "test", lenient=True)
    assert (found.path, found.dropped) == ([str(root / "images_512" / "idle_2.jpg")], 1)
    assert found.hoi.size == 0


BAD: list[tuple[Callable[[list[dict[str, Any]]], Any], str]] = [
    (lambda r: r[0].pop("file_name"), r"entry 0 has no file_name"),
    (lambda r: r.insert(0, 5), r"entry 0 has no file_name"),
    (lambda r: r[1].update(file_name="surfing_1.jpg"), r"entry 1 repeats the image surfing_1.jpg of entry 0"),
    (lambda r: r[0].update(width="wide"), r"entry 0 \(surfing_1.jpg\): width and height are not whole numbers"),
    (lambda r: r[0].update(box_annotations=3), r"entry 0 .*box_annotations and hoi_annotations are not lists"),
    (lambda r: r[0].pop("box_annotations"), r"entry 0 .*interaction of the boxes \(0, 1\); the image has 0"),
    (lambda r: r[0]["hoi_annotations"][0].update(object_id=2), r"interaction of the boxes \(0, 2\); the image has 2"),
    (lambda r: r[0]["hoi_annotations"][0].pop("action_id"), r"action None with object 55 is none of the 14,130"),
    (lambda r: r[0]["hoi_annotations"][0].update(action_id=0), r"action 0 with object 55 is none of the 14,130"),
    (lambda r: r[0]["hoi_annotations"][0].update(action_id=407), r"action 407 with object 55 is none of the 14,130"),
    (lambda r: r[0]["box_annotations"][1].update(category_id=1000), r"action 349 with object 1000 is none of"),
    (lambda r: r[0]["box_annotations"][1].update(bbox=[1, 2, 3]), r"bbox \[1, 2, 3\] is empty, outside"),
    (lambda r: r[0]["box_annotations"][1].update(bbox=[1, 2, None, 4]), r"bbox \[1, 2, None, 4\] is empty, outside"),
    (lambda r: r[0]["box_annotations"][0].update(bbox=[100, 0, 120, 9]), r"bbox \[100, 0, 120, 9\] .* 100 x 80"),
]


@pytest.mark.parametrize(("spoil", "complaint"), BAD)
def test_a_bad_entry_is_an_error_in_one_line_or_leniently_dropped(tmp_path, spoil, complaint):
    content = records()
    spoil(content)
    root = write(tmp_path, content)
    with pytest.raises(UserError, match=rf"^{root}/annotations/swig_test_1000.json: .*{complaint}") as error:
        load_swig_hoi(root, "test", images=False)
    assert "\n" not in str(error.value)
    assert load_swig_hoi(root, "test", images=False, lenient=True).dropped == 1


@pytest.mark.parametrize(("text", "complaint"), [("[", "not readable as JSON"), ("{}", "holds a dict, not a list")])
def test_a_file_that_is_no_list_is_refused(tmp_path, text, complaint):
    (tmp_path / "swig_test_1000.json").write_text(text)
    with pytest.raises(UserError, match=complaint):
        load_swig_hoi(tmp_path, "test", lenient=True)
