"""From annotations and detections to the figures of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.data.pico.layout import AnnotatedImage, write_annotations
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import write_detections
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det, training_pairs
from hoi_distill.stages.evaluate.pages.gallery import EvaluatedSplit, choose_images, gallery_items
from hoi_distill.stages.evaluate.protocols.evaluate_files import evaluate_files
from hoi_distill.stages.evaluate.protocols.types import EvaluationRequest
from hoi_distill.storage.errors import UserError

RARE = np.array([False, True, False])


def without(found: HoiDetections, rows: list[int]) -> HoiDetections:
    return HoiDetections(
        *(np.delete(getattr(found, name), rows, axis=0) for name in HoiDetections.__dataclass_fields__)
    )


def test_a_perfect_detector_has_100_everywhere(annotations: Annotations, perfect: HoiDetections):
    evaluation = evaluate_hico_det(annotations, perfect, RARE)
    assert evaluation.default == evaluation.known_object == {"full": 100.0, "rare": 100.0, "non_rare": 100.0}
    assert [row["recall"] for row in evaluation.per_class] == [100.0] * 3


def test_means_are_over_classes_and_split_by_rareness(annotations: Annotations, perfect: HoiDetections):
    evaluation = evaluate_hico_det(annotations, without(perfect, [1]), RARE)  # the rare class is never found
    assert evaluation.default == {"full": pytest.approx(200 / 3, abs=1e-6), "rare": 0.0, "non_rare": 100.0}


def test_a_set_of_classes_without_pairs_has_no_mean(annotations: Annotations, perfect: HoiDetections):
    no_rare = annotations.take(np.array([1, 2]))
    evaluation = evaluate_hico_det(no_rare, without(perfect, list(range(5))), RARE)
    assert evaluation.default == {"full": 0.0, "rare": None, "non_rare": 0.0}
    assert evaluation.counts["classes_without_pairs"] == 1


def test_known_object_uses_image_level_labels_where_there_are_any(annotations: Annotations, perfect: HoiDetections):
    perfect.image[0] = 3  # now wrong, the highest of its class, in an image that nobody labelled
    labelled = evaluate_hico_det(annotations, perfect, RARE)
    ball = labelled.per_class[0]
    assert ball["ap_known_object"] > ball["ap"]
    annotations.image_hois[3, 0] = True
    assert evaluate_hico_det(annotations, perfect, RARE).per_class[0]["ap_known_object"] == ball["ap"]
    unlabelled = evaluate_hico_det(replace(annotations, image_hois=None), perfect, RARE)
    assert unlabelled.per_class[0]["ap_known_object"] == ball["ap_known_object"]
    assert (labelled.known_object_from, unlabelled.known_object_from) == ("image-level labels", "annotated pairs")


def test_the_record_is_json_and_names_every_class(annotations: Annotations, perfect: HoiDetections):
    record = evaluate_hico_det(annotations, perfect, RARE, training=training_pairs(annotations)).as_json()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert [(row["verb"], row["object"], row["training_pairs"], row["rare"]) for row in record["per_class"]] == [
        ("hold", "sports_ball", 2, False),
        ("throw", "sports_ball", 1, True),
        ("throw", "bicycle", 2, False),
    ]


def test_a_file_is_evaluated_against_a_folder_in_hico_dets_layout(tmp_path: Path):
    words, rng = pico_vocabulary(), np.random.default_rng(0)
    common, rare = 0, 1

    def image(split: str, number: int, hoi: int) -> AnnotatedImage:
        boxes = np.array([(0, 0, 20, 40), (10, 5, 64, 48)]) + rng.integers(0, 3)
        return AnnotatedImage(
            f"HICO_{split}2015_{number:08d}.jpg", 80, 60, boxes, words.hois[[hoi, hoi], 1], [(0, 1, hoi)]
        )

    splits = {
        "train": [image("train", n, common if n < 12 else rare) for n in range(15)],
        "test": [image("test", n, (common, rare)[n % 2]) for n in range(6)],
    }
    write_annotations(tmp_path, words, splits)
    test = load_hico_det(tmp_path, "test", images=False)
    found = HoiDetections(
        test.pair_image().astype(np.int32), test.human_box, test.object_box, test.object.astype(np.int32),
        test.verb.astype(np.int32), test.hoi.astype(np.int32), np.full(6, 0.5, np.float32),
    )  # fmt: skip
    found = without(found, np.flatnonzero(test.hoi == rare)[:2].tolist())
    write_detections(tmp_path / "found.parquet", found, test.image_id)
    request = EvaluationRequest(dataset="hico-det", annotations=tmp_path, detections=tmp_path / "found.parquet")
    evaluation = evaluate_files(request)
    third = round(100 * 4 / 11, 6)  # one of three pairs: recall levels 0, .1, .2, .3
    assert evaluation.record["default"] == {"full": pytest.approx((100 + third) / 2), "rare": third, "non_rare": 100.0}
    assert [row["training_pairs"] for row in evaluation.per_class[:3]] == [12, 3, 0]
    assert evaluation.record["known_object_from"] == "image-level labels"

    found.hoi[0] = -1
    write_detections(tmp_path / "found.parquet", found, test.image_id)
    with pytest.raises(UserError, match="row 0: hoi -1 names no class"):
        evaluate_files(request)


def test_evaluation_imports_neither_torch_nor_ray():
    loaded = (
        "import sys, hoi_distill.stages.evaluate.metrics.hico_det_evaluation, hoi_distill.stages.evaluate.pages.report; "
        "print({'torch', 'ray'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"


def test_images_are_chosen_by_what_was_found(annotations: Annotations, perfect: HoiDetections):
    found = without(perfect, [3, 4])  # nothing found in the third image
    matched = evaluate_hico_det(annotations, found, RARE).matched
    split = EvaluatedSplit(annotations, found, matched)
    np.testing.assert_array_equal(split.found_share(), [1, 1, 0, np.nan])
    chosen = choose_images(split, each=1)
    assert [(pick.image, pick.kind) for pick in chosen[:2]] == [(0, "best"), (2, "worst")]
    assert len({pick.image for pick in choose_images(split, each=4)}) == 4


def test_a_gallery_says_what_was_found_and_what_was_missed(annotations: Annotations, perfect: HoiDetections):
    found = without(perfect, [1])
    matched = evaluate_hico_det(annotations, found, RARE).matched
    split = EvaluatedSplit(annotations, found, matched)
    chosen = choose_images(split, each=4)
    blank = np.zeros((80, 100, 3), np.uint8)
    items = gallery_items(split, chosen, lambda image: blank, captions={0: [("", "a ball")]}, matches={})
    (first,) = [item for item in items if item.title == "a.jpg"]
    assert [(pair.verb, pair.object, pair.matched) for pair in first.annotated] == [
        ("hold", "sports ball", True),
        ("throw", "sports ball", False),
    ]
    assert [(pair.verb, pair.matched) for pair in first.predictions] == [("hold", True)]
    assert first.captions == [("", "a ball")]
