"""A figure of a run leads to the images behind it, on pages that stay small and hold all that they show."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote_plus

import numpy as np
import pytest
from PIL import Image

from hoi_distill.pipeline.reports.run import EVALUATION, IMAGES, LINKS
from hoi_distill.pipeline.viewer.query import Query
from hoi_distill.stages.data.vocabulary import hico_vocabulary
from hoi_distill.stages.evaluate.metrics.bootstrap import Interval
from hoi_distill.stages.evaluate.metrics.differences import Difference
from hoi_distill.stages.evaluate.pages import behind, report
from hoi_distill.stages.evaluate.pages.behind import ImagesPage, images_behind, write_images_page
from hoi_distill.stages.evaluate.pages.evaluation_page import measure_errors, write_evaluation
from hoi_distill.stages.evaluate.pages.folder_page import FolderPage, write_folder_page
from hoi_distill.stages.evaluate.pages.images import Pair
from hoi_distill.stages.evaluate.protocols.hico_det import evaluate_triplets
from hoi_distill.stages.evaluate.protocols.types import EvaluationResult
from tests.fixtures.chromium import EXECUTABLE, Chromium
from tests.fixtures.hostile import CAPTIONS, MARKS, NAMES
from tests.fixtures.sample_pages import drawn_image, evaluated, evaluation, gallery, run_report

RUN = "viewed/0a1b"


def address(parts: Mapping[str, str]) -> str:
    return "/" + Query(**{**parts, "run": RUN}).address()


def with_images(result: EvaluationResult, folder: Path, side: int = 500) -> EvaluationResult:
    """The same with an image file for each of its images, which all look the same to the eye."""
    assert result.annotations is not None
    drawn_image(side, side).save(folder / "drawn.png")
    given = replace(result.annotations, path=[str(folder / "drawn.png")] * len(result.image_ids))
    return replace(result, annotations=given)


def write_all(result: EvaluationResult, folder: Path, data: report.ReportData) -> None:
    """The pages of a run, as a training writes them."""
    errors = measure_errors(result)
    confused = [(row.annotated, row.said) for row in (*errors.verbs, *errors.objects)]
    sections = images_behind(result, confused)
    assert result.annotations is not None
    write_images_page(folder / IMAGES, ImagesPage("run", "About.", sections, result.annotations, address))
    write_evaluation(result, folder / EVALUATION, "run", resamples=20, images=f"../{IMAGES}")
    write_report(folder, data)


def write_report(folder: Path, data: report.ReportData) -> None:
    report.write_report(folder / "report.html", replace(data, images=IMAGES, links=LINKS))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with its three pages."""
    folder = tmp_path_factory.mktemp("run")
    write_all(with_images(evaluated(), folder), folder, run_report())
    return folder


def addresses(page: Path) -> list[str]:
    return re.findall(r'href="([^"#]*#[^"]+|[^":#]+)"', page.read_text())


def test_every_link_of_a_report_and_of_its_evaluation_leads_to_what_is_there(written: Path):
    anchors = set(re.findall(r'id="([^"]+)"', (written / IMAGES).read_text()))
    (written / "checkpoint").mkdir(exist_ok=True)
    (written / "log.txt").touch()
    for page, least in ((written / "report.html", 100), (written / EVALUATION / "evaluation.html", 60)):
        found = [each for each in addresses(page) if not each.startswith("#p")]
        assert len(found) > least
        for each in found:
            file, _, anchor = each.partition("#")
            assert (page.parent / file).exists(), each
            assert not anchor or anchor in anchors, each


def test_the_average_precision_of_each_class_and_each_cell_of_the_confusions_is_a_link(written: Path):
    text = (written / "report.html").read_text()
    for row in evaluation()["per_class"]:
        drawn = row["ap"] is not None
        assert text.count(f'href="{IMAGES}#class-{row["hoi"]}"') == 1 + drawn, (
            "in the table, and as a mark of the chart"
        )
    text, errors = (written / EVALUATION / "evaluation.html").read_text(), measure_errors(evaluated())
    for row in (*errors.verbs, *errors.objects):
        assert f'href="../{IMAGES}#class-{row.annotated}-as-{row.said}">{row.count}<' in text
    for row in errors.errors:
        assert (f'href="../{IMAGES}#kind-{row.kind.replace(" ", "-")}"' in text) == bool(row.decisive)


def test_a_class_shows_its_errors_its_misses_and_what_was_right_with_the_viewers_address(written: Path):
    result = evaluated()
    assert result.diagnosis is not None
    (busiest,) = np.argsort(-np.bincount(result.detections.hoi))[:1].tolist()
    (found,) = [each for each in images_behind(result, [])["Classes"] if each.anchor == f"#class-{busiest}"]
    kinds = {tile.text.partition(",")[0].partition(":")[0] for tile in found.tiles}
    assert {"right", "missed"} < kinds
    assert sum(tile.right for tile in found.tiles) == behind.RIGHT
    page = (written / IMAGES).read_text()
    name = quote_plus(result.per_class[busiest]["name"])
    assert f"/?interaction={name}&amp;run=viewed%2F0a1b&amp;kind=any" in page
    assert Query.parse({**found.query, "run": RUN}).interaction == result.per_class[busiest]["name"]


def test_an_image_is_stored_once_however_often_it_is_shown(written: Path):
    page = (written / IMAGES).read_text()
    shown = re.findall(r'<use href="#(i\d+)"', page)
    stored = re.findall(r'<symbol id="(i\d+)"', page)
    assert len(stored) == len(set(stored)) == page.count("data:image/jpeg")
    assert set(shown) == set(stored)
    assert len(shown) > 2 * len(stored)
    card = (written / "report.html").read_text()
    assert card.count("<image id=") == len(run_report().gallery) == card.count("<use href=")


def test_an_image_that_cannot_be_read_is_left_out_and_the_page_stands(tmp_path: Path):
    result = evaluated()  # whose images have no file
    assert result.annotations is not None
    page = ImagesPage("run", "About.", images_behind(result, []), result.annotations, address)
    write_images_page(tmp_path / IMAGES, page)
    assert "no room here" in (tmp_path / IMAGES).read_text()


def many(images: int) -> EvaluationResult:
    """The evaluation of a test set of many images, of HICO-DET's 600 classes."""
    rng = np.random.default_rng(0)
    base = evaluated()
    assert base.annotations is not None
    words = hico_vocabulary()
    classes = len(words)
    pairs = 3 * images
    hoi = rng.integers(0, classes, pairs).astype(np.int16)
    image = np.sort(rng.integers(0, images, pairs))
    boxes = np.concatenate([rng.uniform(0, 200, (pairs, 2)), rng.uniform(210, 480, (pairs, 2))], 1).astype(np.float32)
    given = replace(
        base.annotations, vocabulary=words, image_id=np.array([f"{i}.jpg" for i in range(images)]), path=[""] * images,
        width=np.full(images, 640, np.int32), height=np.full(images, 480, np.int32), human_box=boxes, object_box=boxes + 5,
        pair_offsets=np.searchsorted(image, np.arange(images + 1)), hoi=hoi,
        object=words.hois[hoi, 1], verb=words.hois[hoi, 0],
    )  # fmt: skip
    said = np.where(rng.random(pairs) < 0.5, hoi, rng.integers(0, classes, pairs)).astype(np.int32)
    found = replace(
        base.detections, image=image.astype(np.int32), human_box=boxes, object_box=boxes + 5, hoi=said,
        object=words.hois[said, 1].astype(np.int32), verb=words.hois[said, 0].astype(np.int32),
        score=rng.random(pairs).astype(np.float32),
    )  # fmt: skip
    return evaluate_triplets(given, found, np.full(classes, 20))


def test_the_pages_of_a_thousand_test_images_and_600_classes_stay_below_five_megabytes(tmp_path: Path):
    rng, result = np.random.default_rng(1), many(1000)
    noise = Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    paths = []
    for number in range(1000):  # photographs of much detail, all in one file: what is stored is told by position
        paths.append(str(tmp_path / "photo.jpg"))
        if not number:
            noise.save(paths[0], quality=90)
    assert result.annotations is not None
    result = replace(result, annotations=replace(result.annotations, path=paths))
    items = [replace(item, image=noise) for item in gallery(12)]
    rows = {**evaluation(), "per_class": result.per_class}
    write_all(result, tmp_path, replace(run_report(), evaluation=rows, gallery=items))
    for page in ("report.html", IMAGES, f"{EVALUATION}/evaluation.html"):
        assert (tmp_path / page).stat().st_size < 5e6, page
    shown = (tmp_path / IMAGES).read_text()
    assert shown.count("<symbol") > 300
    first = re.findall(r'id="class-\d+">.*?<div class="tiles">(.*?)</div>', shown, re.S)
    assert len(first) == 600
    assert sum("<figure>" in each for each in first) > 590, "every figure keeps its first images"


def test_a_report_sets_other_runs_and_intervals_beside_its_figures(tmp_path: Path):
    means = {"full": 70.0, "rare": 60.0, "non_rare": None}
    differences = {"full": Difference(1.23, 0.5, 2.0, (1, 1)), "rare": Difference(-4.9, -9.0, 0.1, (1, 1))}
    other = report.Beside(
        "the baseline", "0a1b", means, differences, [("steps", "500", "<b>900</b>")], "../0a1b/report.html"
    )
    data = replace(run_report(), beside=[other], intervals={"default": {"full": Interval(68.04, 73.96, 1, 0)}})
    report.write_report(tmp_path / "report.html", data)
    text = (tmp_path / "report.html").read_text()
    assert "68.0 to 74.0" in text
    assert re.search(r"\+1\.23 \(\+0\.50 to \+2\.00\)<br>differs", text)
    assert re.search(r"−4\.90 \(−9\.00 to \+0\.10\)<br>does not differ", text)
    assert '<a href="../0a1b/report.html">0a1b</a>' in text
    assert "<code>steps</code> 500 → &lt;b&gt;900&lt;/b&gt;" in text
    report.write_report(tmp_path / "alone.html", run_report())
    assert "Beside other runs" not in (tmp_path / "alone.html").read_text()


def test_what_a_quoted_teacher_was_trained_on_stands_beside_the_quotation(tmp_path: Path):
    told = [("captions and itm", "129 million <i>pairs</i>")]
    report.write_report(tmp_path / "report.html", replace(run_report(), teachers=told))
    text = (tmp_path / "report.html").read_text()
    said = "<dt>Teacher of captions and itm</dt><dd>trained on 129 million &lt;i&gt;pairs&lt;/i&gt;</dd>"
    assert text.index("Test images</h2>") < text.index(said) < text.index("<article")


@pytest.mark.slow
@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on the PATH (apt-get install chromium)")
def test_hostile_classes_and_names_are_text_in_all_pages_of_a_run_and_nothing_is_asked_for(tmp_path: Path):
    result = with_images(evaluated(), tmp_path)
    assert result.annotations is not None
    names = np.array([MARKS[i % len(MARKS)] + str(i) for i in range(len(result.image_ids))])
    per_class = [row | {"name": MARKS[i % len(MARKS)]} for i, row in enumerate(result.per_class)]
    result = replace(result, annotations=replace(result.annotations, image_id=names), per_class=per_class)
    write_all(result, tmp_path, run_report())
    with Chromium() as browser:
        for page in (tmp_path / IMAGES, tmp_path / EVALUATION / "evaluation.html", tmp_path / "report.html"):
            for width in (1400, 390):
                browser.open(page, width)
                assert browser.complaints == []
                assert browser.requests == [page.as_uri()]
                assert browser.run("document.querySelectorAll('[onerror], [onload], iframe, base').length") == 0
                assert browser.run("document.documentElement.scrollWidth") <= width, page
        browser.open(tmp_path / IMAGES, 1400)
        titles = browser.run("[...document.querySelectorAll('.figure h3')].map(h => h.firstChild.data.trim())")
        assert {mark.strip() for mark in MARKS} <= set(titles)


@pytest.mark.slow
@pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on the PATH (apt-get install chromium)")
def test_fifty_hostile_texts_on_the_pages_of_a_folder_and_a_run_are_text_and_ask_for_nothing(tmp_path: Path):
    names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in (NAMES * 2)[: len(CAPTIONS)]]
    box = {"box": [10, 10, 60, 90], "score": 0.87}
    items = [
        replace(
            gallery(2)[1], title=name, captions=[(caption, caption)], boxes=[{**box, "label": caption[:60]}],
            triplets=[(caption, [(caption, 0.5, caption)], [(caption, caption)])],
            annotated=[Pair((5, 5, 60, 90), (50, 50, 90, 90), caption, caption)],
        )
        for name, caption in zip(names, CAPTIONS, strict=True)
    ]  # fmt: skip
    pages = [f"{mark}.html".replace("/", "") for mark in MARKS[:3]]
    data = FolderPage(MARKS[0], MARKS[1], items, {MARKS[2]: MARKS[3]}, pages=pages, teachers=[(MARKS[4], MARKS[5])])
    write_folder_page(tmp_path / "page.html", data)
    report.write_report(tmp_path / "report.html", replace(run_report(), gallery=items, teachers=data.teachers))
    with Chromium() as browser:
        for page, width in ((tmp_path / "page.html", 390), (tmp_path / "report.html", 1400)):
            browser.open(page, width)
            assert browser.complaints == []
            assert browser.requests == [page.as_uri()]
            assert (
                browser.run("document.querySelectorAll('[onerror], [onload], iframe, base, main script').length") == 0
            )
            assert browser.run("document.documentElement.scrollWidth") <= width, page
            text = browser.run("document.body.textContent")
            for item in items:
                assert item.title in text
                assert item.captions[0][1] in text
