"""A vocabulary from two text files, one name a line."""

from __future__ import annotations

import pytest

from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.word_lists import participle_of, read_word_lists
from hoi_distill.storage.errors import UserError


def lists(folder, verbs, objects):
    (folder / "verbs.txt").write_text(verbs)
    (folder / "objects.txt").write_text(objects)
    return read_word_lists(folder / "verbs.txt", folder / "objects.txt")


def test_a_verb_goes_with_its_own_objects_or_with_all_of_them(tmp_path):
    words = lists(
        tmp_path, "ride: Bicycle  # and nothing else\n\nWave At\nski = skiing: skis\n", "bicycle\nboat\nskis\n"
    )
    named = {" ".join(words.hoi_name(hoi)) for hoi in range(len(words))}
    assert named == {"ride bicycle", "wave_at bicycle", "wave_at boat", "wave_at skis", "ski skis"}
    assert words.objects == COCO_OBJECTS  # so that boxes of a COCO detector fit
    assert "a photo of a person waving at a boat" in words.prompts()
    assert "a photo of a person skiing a pair of skis" in words.prompts()


def test_objects_that_coco_does_not_know_are_counted_from_the_person(tmp_path):
    words = lists(tmp_path, "fly\nfeed: person\n", "kite\nhang glider\nperson")
    assert words.objects == ("person", "kite", "hang_glider")
    assert len(words) == 4


@pytest.mark.parametrize(
    ("verb", "participle"), [("sit_on", "sitting_on"), ("lie", "lying"), ("stop", "stopping"), ("zorb", "zorbing")]
)
def test_participles_come_from_a_dictionary(verb, participle):
    assert participle_of(verb) == participle


@pytest.mark.parametrize(
    ("verbs", "objects", "said"),
    [
        ("", "kite", r"verbs\.txt: no word in it; write one a line"),
        ("fly", "# kite", r"objects\.txt: no word in it"),
        ("fly: kit", "kite", r"verbs\.txt: line 1: 'kit' is no line of .*objects\.txt \(did you mean kite\?\)"),
        ("fly:", "kite", r"verbs\.txt: line 1: no object after the colon"),
        ("fly\n\nFly: kite", "kite", r"verbs\.txt: line 3: the verb 'fly' stands there twice"),
        ("fly", "kite\nKite", r"objects\.txt: line 2: 'Kite' stands in .*line 1 too; remove one"),
        ("fly", "a kite in the blue sky", r"objects\.txt: line 1: .* is not an object; write one name a line"),
        ('{"fly": 1}', "kite", r"verbs\.txt: line 1: .* is not a verb"),
    ],
)
def test_a_bad_line_is_named(tmp_path, verbs, objects, said):
    with pytest.raises(UserError, match=said) as refusal:
        lists(tmp_path, verbs, objects)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read \(No such file"):
        read_word_lists(tmp_path / "verbs.txt", tmp_path / "gone.txt")
    (tmp_path / "objects.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"objects\.txt: not a text file in UTF-8"):
        read_word_lists(tmp_path / "verbs.txt", tmp_path / "objects.txt")
