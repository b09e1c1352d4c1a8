"""Sample pages: drawn pictures and made-up figures, with markup wherever a teacher or a user supplies text."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.pages import report
from hoi_distill.stages.evaluate.pages.evaluation_page import write_evaluation
from hoi_distill.stages.evaluate.pages.gallery import GalleryItem, Match
from hoi_distill.stages.evaluate.pages.pictures import Pair
from hoi_distill.stages.evaluate.protocols.hico_det import evaluate_triplets
from hoi_distill.stages.evaluate.protocols.types import EvaluationResult

MARKUP = "<img src=x onerror=\"console.error('obeyed')\"><b>a man & a dog</b>"
SHORT_MARKUP = "<i onerror=x>"
VERBS = (SHORT_MARKUP, "hold", "sit_on", "feed", "read", "no_interaction")
OBJECTS = ("bicycle", "horse", "book", "umbrella", "sports_ball", "chair", "dog", "cup", "teddy_bear")


def drawn_picture(width: int = 128, height: int = 128, seed: int = 0) -> Image.Image:
    """A small scene: sky, ground, an upright figure and a disc."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height), (198, 220, 236))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, int(height * 0.65), width, height), fill=(150, 180, 120))
    x = int(width * rng.uniform(0.15, 0.4))
    pen.ellipse((x, height * 0.2, x + width * 0.12, height * 0.32), fill=(230, 190, 160))
    pen.rectangle((x, height * 0.32, x + width * 0.12, height * 0.8), fill=tuple(rng.integers(0, 255, 3).tolist()))
    pen.ellipse((width * 0.6, height * 0.55, width * 0.85, height * 0.8), fill=(180, 60, 50))
    return picture


def pairs_in(width: int, height: int, predicted: bool) -> list[Pair]:
    human = (0.2 * width, 0.18 * height, 0.42 * width, 0.82 * height)
    ball, far = (
        (0.58 * width, 0.52 * height, 0.87 * width, 0.82 * height),
        (0.7 * width, 0.1 * height, 0.9 * width, 0.4 * height),
    )
    if not predicted:
        return [
            Pair(human, ball, "hold", "sports ball", None, True),
            Pair(human, ball, "throw", "sports ball", None, False),
        ]
    return [
        Pair(human, ball, "hold", "sports ball", 0.91, True),
        Pair(human, far, "no interaction", "teddy bear", 0.44, False),
        Pair(human, ball, SHORT_MARKUP, "sports ball", 0.31, False),
    ]


def gallery(count: int) -> list[GalleryItem]:
    items = []
    for i in range(count):
        width, height = ((128, 128), (640, 427), (300, 500))[i % 3]
        items.append(
            GalleryItem(
                title=f"pico_test_{i:08d}.png" if i else MARKUP,
                picture=drawn_picture(width, height, i),
                kind=("best", "worst", "random")[i * 3 // count],
                note="1 of 2 pairs found by as many predictions",
                predictions=pairs_in(width, height, True),
                annotated=pairs_in(width, height, False) if i % 4 else [],
                captions=[
                    ("", MARKUP),
                    ("a list of what people do:", "a person holding a ball and a person sitting on a chair"),
                ],
                matches=[
                    Match(f"a photo of a person {verb.replace('_', ' ')} a sports ball", 0.97 / (k + 1), k == 1)
                    for k, verb in enumerate(VERBS)
                ],
            )
        )
    return items


def evaluation() -> dict:
    rng = np.random.default_rng(0)
    per_class = []
    for hoi, (verb, thing) in enumerate((v, o) for o in OBJECTS for v in VERBS):
        training = int(400 * math.exp(-0.1 * hoi)) + int(rng.integers(0, 6))
        ap = None if hoi == 7 else float(np.clip(60 + 8 * math.log(1 + training) + rng.normal(0, 9) - 20, 0, 100))
        record = {
            "hoi": hoi,
            "verb": verb,
            "object": thing,
            "rare": training < 10,
            "training_pairs": training,
            "pairs": 30,
        }
        record |= {"detections": 400, "found": 20, "ap": ap, "recall": None if ap is None else 80.0}
        per_class.append(record | {"ap_known_object": None if ap is None else min(100.0, ap + 3)})
    return {
        "dataset": "pico",
        "split": "test",
        "counts": {
            "pictures": 1000, "pairs": 2240, "detections": 100_000,
            "classes": len(per_class), "rare_classes": 20, "classes_without_pairs": 1,
        },
        "default": {"full": 71.234567, "rare": 55.1, "non_rare": 80.25},
        "known_object": {"full": 75.5, "rare": 60.0, "non_rare": None},
        "known_object_from": "image-level labels",
        "per_class": per_class,
    }  # fmt: skip


def tables() -> list[report.TableRead]:
    record = {
        "stage": "itm", "version": 1, "source": "images",
        "output": {"format": "arrow", "type": "fixed_size_list<float16>[2]"},
        "parameters.weights": "9f2c" * 16, "parameters.image_size": 128, "parameters.dtype": "float32",
        "parameters.token_mode": "stock", "parameters.prompt": MARKUP,
    }  # fmt: skip
    names = ("captions", "detections", "features", "itm", "text_embeddings")
    return [report.TableRead(name, f"{i}b6e19d0c4f7a2e8" * 2, record, 55 - i) for i, name in enumerate(names)]


def run_report() -> report.ReportData:
    rng = np.random.default_rng(1)
    steps = list(range(10, 510, 10))
    curves = [
        report.Curve(name, steps, [scale * math.exp(-s / 120) + 0.1 * scale * rng.uniform(0, 1) + 0.02 for s in steps])
        for name, scale in (
            ("loss, total", 2.2),
            ("loss: labels", 1.4),
            ("loss: " + SHORT_MARKUP, 0.8),
            ("learning rate", 1e-3),
        )
    ]
    return report.ReportData(
        name="pico: labels and cached ITM scores of the unlabelled pictures",
        trained_on="500 labelled pictures, and the teacher's cached ITM scores of 3,500 unlabelled ones. " + MARKUP,
        evaluation=evaluation(),
        facts=[("seed", "0"), ("steps", "500"), ("training", "41 s"), ("device", "cpu")],
        curves=curves,
        tables=tables(),
        skipped={"truncated picture": 2, "1 x 1 picture": 1},
        parameters={"steps": 500, "learning_rate": 1e-3, "prompt": MARKUP},
        gallery=gallery(6),
    )


def folder_page() -> report.FolderPage:
    return report.FolderPage(
        "photos", "Eight photographs. " + MARKUP, gallery(5), {"broken.jpg": "truncated " + MARKUP}, tables()
    )


def experiments_page() -> report.ExperimentsPage:
    rng = np.random.default_rng(2)
    arms = []
    for name, full, rare in (
        ("labels only", 80, 69),
        ("+ ITM, unlabelled pictures", 88, 86),
        ("self-training " + SHORT_MARKUP, 81, 70),
    ):
        runs = []
        for seed in range(3):
            figures = {
                "full": full + rng.normal(0, 0.6),
                "rare": rare + rng.normal(0, 1.5),
                "non_rare": 86 + rng.normal(0, 0.4),
            }
            runs.append(report.Run(seed, figures, {key: value + 2 for key, value in figures.items()}, 40.0))
        arms.append(report.Arm(name, f"What {name} is, and what it shows. {MARKUP}", runs))
    return report.ExperimentsPage(
        "Students on the pico world", "Arms against seeds. " + MARKUP, arms, "Made-up figures."
    )


def judged() -> EvaluationResult:
    """An evaluated file of 54 classes whose first verb is markup, with every kind of error and a class without pairs."""
    rng = np.random.default_rng(4)
    hois = np.array([(verb, thing) for thing in range(len(OBJECTS)) for verb in range(len(VERBS))], np.int16)
    words = Vocabulary(OBJECTS, VERBS, hois, VERBS)
    hoi = np.sort(rng.integers(1, len(hois), 400) * rng.integers(0, 2, 400)).astype(np.int16)
    hoi[hoi == 7] = 8
    image = np.sort(rng.integers(0, 120, 400))
    corner = rng.uniform(0, 300, (2, 400, 2))
    human, thing = np.concatenate([corner, corner + rng.uniform(40, 200, (2, 400, 2))], 2).astype(np.float32)
    annotated = Annotations(
        name="pico", split="test", vocabulary=words, image_id=np.array([f"{i}.png" for i in range(120)]),
        path=[""] * 120, width=np.full(120, 500, np.int32), height=np.full(120, 500, np.int32),
        pair_offsets=np.searchsorted(image, np.arange(121)), human_box=human, object_box=thing,
        object=hois[hoi, 1], verb=hois[hoi, 0], hoi=hoi,
    )  # fmt: skip
    rows = np.repeat(np.arange(400), 4)
    said = np.where(rng.random(1600) < 0.7, hoi[rows], rng.integers(0, len(hois), 1600)).astype(np.int32)
    off = rng.normal(0, 25, (2, 1600, 1)).astype(np.float32) * (rng.random((2, 1600, 1)) < 0.5)
    found = HoiDetections(
        image[rows].astype(np.int32), human[rows] + off[0], thing[rows] + off[1], hois[said, 1].astype(np.int32),
        hois[said, 0].astype(np.int32), said, rng.random(1600).astype(np.float32),
    )  # fmt: skip
    return evaluate_triplets(annotated, found, rng.integers(0, 60, len(hois)))


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page, written once: {"report": path, "folder": path, ...}."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in ("report", "folder", "experiments")}
    report.write_report(paths["report"], run_report())
    report.write_folder_page(paths["folder"], folder_page())
    report.write_experiments_page(paths["experiments"], experiments_page())
    write_evaluation(judged(), folder, MARKUP, resamples=50)
    return {**paths, "evaluation": folder / "evaluation.html"}
