"""What a run's report says of the images that it shows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hoi_distill.pipeline.reports.run import ticked
from hoi_distill.stages.data.folder import load_annotated_folder
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.evaluate.pages.gallery import Match

WORDS = pico_vocabulary()
RIDE = WORDS.prompts()[WORDS.hoi_id()[WORDS.verbs.index("ride"), WORDS.objects.index("bicycle")]]


@pytest.fixture
def folder(tmp_path):
    """Annotations of one's own: a.jpg shows riding a bicycle, b.jpg nothing."""
    WORDS.save(tmp_path / "words.json")
    pair = {"human_box": [1, 1, 9, 9], "object_box": [3, 3, 20, 20], "object": "bicycle", "verbs": ["ride"]}
    images = [
        {"file_name": name, "split": "test", "width": 64, "height": 48, "pairs": pairs}
        for name, pairs in (("a.jpg", [pair]), ("b.jpg", []))
    ]
    (tmp_path / "annotations.json").write_text(json.dumps({"vocabulary": "words.json", "pictures": images}))
    return load_annotated_folder(tmp_path / "annotations.json", "test", images=False)


def test_prompts_are_ticked_by_the_pairs_where_no_image_has_labels_of_its_own(folder):
    assert folder.image_hois is None
    other = next(prompt for prompt in WORDS.prompts() if prompt != RIDE)
    matches = [[Match(RIDE, 0.9), Match(other, 0.8), Match("a photo of a dream", 0.7)]] * 2
    marks = [[match.annotated for match in row] for row in ticked(matches, folder.image_truth(), WORDS.prompts())]
    assert marks == [[True, False, None], [False, False, None]]
    assert ticked([[], []], folder.image_truth(), WORDS.prompts()) == [[], []]


def test_a_label_of_the_whole_image_ticks_too(folder):
    labels = np.zeros((2, len(WORDS)), bool)
    labels[1, WORDS.prompts().index(RIDE)] = True
    truth = replace(folder, image_hois=labels).image_truth()
    assert [row[0].annotated for row in ticked([[Match(RIDE, 0.9)]] * 2, truth, WORDS.prompts())] == [True, True]


def test_a_prompt_of_two_classes_is_ticked_by_either():
    (row,) = ticked([[Match("both", 0.5)]], np.array([[True, False]]), ("both", "both"))
    assert row[0].annotated
