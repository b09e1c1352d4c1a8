"""What the pages' HTML promises, without a browser."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoi_distill.pipeline.reports.run import next_commands
from hoi_distill.stages.evaluate.metrics.training_pairs import PAIR_GROUP_LABELS, means_by_pairs
from hoi_distill.stages.evaluate.pages import charts, folder_page, report
from hoi_distill.stages.evaluate.pages.evaluation_page import write_evaluation
from hoi_distill.stages.evaluate.pages.gallery import Match
from hoi_distill.stages.evaluate.pages.images import Pair, data_uri, draw_pairs, load_image, numbered
from hoi_distill.storage.errors import UserError
from tests.fixtures.hostile import CAPTIONS, NAMES
from tests.fixtures.sample_pages import MARKUP, evaluated, evaluation, gallery, run_report

KINDS = ("report", "folder", "experiments", "evaluation")


class Reader(HTMLParser):
    """Every start tag with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("kind", KINDS)
def test_markup_in_texts_is_shown_not_obeyed(kind: str, pages: dict[str, Path]):
    page = Reader(pages[kind].read_text())
    assert MARKUP in page.text
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_refers_to_nothing_outside_itself(kind: str, pages: dict[str, Path]):
    text = pages[kind].read_text()
    addresses = [
        value or ""
        for _, attributes in Reader(text).tags
        for key, value in attributes.items()
        if key in ("src", "href")
    ]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|https?://", text)


def test_the_report_holds_every_figure_class_and_fingerprint(pages: dict[str, Path]):
    text = Reader(pages["report"].read_text()).text
    data = run_report()
    for figure in ("71.23", "55.10", "80.25", "75.50", "60.00"):
        assert figure in text
    for row in data.evaluation["per_class"]:
        assert report.class_name(row) in text
    for table in data.tables:
        assert table.fingerprint in text
    assert "3 images were skipped: 2 × truncated image" in text
    groups = means_by_pairs(data.evaluation["per_class"])
    assert groups
    for group, means in groups.items():
        assert f"{PAIR_GROUP_LABELS[group].capitalize()} ({means['classes']})" in text


def test_an_evaluation_names_every_class_and_draws_its_curve(pages: dict[str, Path]):
    page = Reader(pages["evaluation"].read_text())
    (plotted,) = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', pages["evaluation"].read_text()
    )
    classes = json.loads(plotted)["classes"]
    assert [shown["name"] for shown in classes] == [row["name"] for row in evaluated().per_class]
    assert len([attributes for _, attributes in page.tags if "data-value" in attributes]) == 5 * len(classes)
    for shown, row in zip(classes, evaluated().per_class, strict=True):
        assert bool(shown["curve"]) == bool(row["found"])
        assert shown["name"] in page.text
    for word in ("wrong verb", "duplicate", "background", "Intervals", "Known-object image sets are taken from"):
        assert word in page.text


def test_the_page_of_600_classes_stays_small(tmp_path: Path):
    base = evaluated()
    many = [row | {"hoi": index % 54} for index, row in enumerate(base.per_class * 12)][:600]
    write_evaluation(replace(base, per_class=many), tmp_path, "many", resamples=0)
    assert (tmp_path / "evaluation.html").stat().st_size < 3e6


def test_skipped_rows_are_told_apart_from_none_and_unknown(tmp_path: Path):
    for skipped, said in (({}, True), (None, False)):
        data = report.ReportData("run", "labels", evaluation(), skipped=skipped)
        report.write_report(tmp_path / "page.html", data)
        assert ("No image was skipped" in (tmp_path / "page.html").read_text()) == said


def test_labels_of_a_teacher_are_shown_beside_the_annotations(tmp_path: Path):
    rows = [("of the texts alone", 0.9, 0.95, 0.872), ("of texts and yes/no answers", None, 0.5, 0.919)]
    check = report.LabelCheck(500, rows, {"no such interaction": 3})
    for labels in (check, None):
        report.write_report(tmp_path / "page.html", report.ReportData("run", "texts", evaluation(), labels=labels))
        page = (tmp_path / "page.html").read_text()
        assert ("The teacher's labels" in page) == (labels is check)
        if labels:
            assert ">87.2<" in page
            assert ">–<" in page
            assert "3 × no such interaction" in page


def test_classes_are_not_spread_by_annotations_that_the_training_did_not_have(tmp_path: Path):
    spread = "Each mark is a class"
    report.write_report(tmp_path / "page.html", report.ReportData("run", "labels", evaluation()))
    assert spread in (tmp_path / "page.html").read_text()
    without = evaluation()
    without["per_class"] = [{**row, "training_pairs": 0} for row in without["per_class"]]
    report.write_report(tmp_path / "page.html", report.ReportData("run", "texts", without))
    assert spread not in (tmp_path / "page.html").read_text()


def test_a_report_is_read_from_a_run_folder(tmp_path: Path):
    provenance = {"itm": {"dir": "cache/itm", "fingerprint": "f00d" * 8, "record": {"stage": "itm"}, "columns": 55}}
    (tmp_path / "student.json").write_text(json.dumps({"seed": 3, "provenance": provenance}))
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation()))
    lines = [
        {"step": s, "loss": 2.0 / s, "loss/labels": 1.0 / s, "lr": 1e-3, "seconds": s} for s in (10, 20, 30, 20, 30)
    ]
    lines[3]["loss"] = 0.5  # a resumed run logs a step again
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = report.ReportData.from_run(tmp_path, "run", "labels")
    assert [curve.name for curve in data.curves] == ["loss, total", "loss: labels", "learning rate"]
    assert list(data.curves[0].steps) == [10, 20, 30]
    assert data.curves[0].values[1] == 0.5
    assert data.tables[0] == report.TableRead("itm", "f00d" * 8, {"stage": "itm"}, 55)
    assert data.parameters == {"seed": 3}
    report.write_report(tmp_path / "report.html", data)


def test_an_unfinished_run_folder_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match=r"student\.json"):
        report.ReportData.from_run(tmp_path, "run", "labels")


def test_means_and_spread_over_seeds():
    runs = [report.Run(seed, {"full": value}) for seed, value in enumerate((80.0, 82.0, 84.0))]
    spread = report.Spread.of(report.Arm("arm", "", runs), "default", "full")
    assert (spread.mean, spread.sd) == (82.0, 2.0)
    assert report.Spread.of(report.Arm("arm", "", runs[:1]), "default", "full").sd is None
    assert report.Spread.of(report.Arm("arm", "", runs), "default", "rare").values == ()


def test_boxes_are_drawn_where_they_are():
    image = Image.new("RGB", (180, 90))
    lines = numbered([Pair((10, 20, 30, 40), (50, 20, 90, 80), "hold", "cup")])
    drawn = draw_pairs(data_uri(image), image.size, lines, "alt")
    assert '<rect x="20.0" y="40.0" width="40.0" height="40.0"' in drawn  # drawings are 360 wide
    assert '<rect x="100.0" y="40.0" width="80.0" height="120.0"' in drawn
    assert "1 hold" in drawn


def test_verbs_of_the_same_boxes_share_a_number():
    human, cup, chair = (0, 0, 9, 9), (5, 5, 9, 9), (1, 1, 9, 9)
    pairs = [Pair(human, cup, "hold", "cup"), Pair(human, chair, "sit on", "chair"), Pair(human, cup, "wash", "cup")]
    assert [line.number for line in numbered(pairs)] == [1, 2, 1]


def test_a_pair_has_one_number_on_both_sides():
    human, cup, chair, far = (0, 0, 40, 80), (30, 20, 50, 40), (10, 40, 60, 90), (200, 200, 240, 280)
    truths = [Pair(human, cup, "hold", "cup"), Pair(human, chair, "sit on", "chair"), Pair(human, cup, "wash", "cup")]
    near = tuple(edge + 2 for edge in human)
    found = [
        Pair(far, cup, "hold", "cup"),  # nobody's: counts on
        Pair(near, chair, "sit on", "chair"),
        Pair(human, cup, "fill", "cup"),  # the first pair, whatever the verb
        Pair(near, chair, "lie on", "chair"),
        Pair(near, cup, "hold", "cup"),  # the first pair too, but its number stands for other boxes already
    ]
    left = numbered(truths)
    right = numbered(found, left)
    assert [line.number for line in left] == [1, 2, 1]
    assert [line.number for line in right] == [3, 2, 1, 2, 4]
    colours = {line.number: line.colour for line in left}
    assert all(line.colour == colours.get(line.number, line.colour) for line in right)
    assert len({line.colour for line in right}) == 4


def test_a_pair_without_an_object_has_its_number_too():
    stand, nothing = Pair((0, 0, 40, 80), (0, 0, 0, 0), "stand", ""), (0, 0, 0, 0)
    sit = Pair((0, 0, 40, 80), (10, 40, 60, 90), "sit on", "chair")
    left = numbered([sit, stand])
    assert [line.number for line in numbered([Pair((1, 1, 40, 80), nothing, "stand", "")], left)] == [2]
    assert [line.number for line in numbered([], left)] == []
    assert [line.number for line in numbered([stand], ())] == [1]


def test_labels_do_not_cover_one_another():
    human = (10.0, 10.0, 60.0, 100.0)
    pairs = [Pair(human, (70.0 + i, 20.0, 90.0 + i, 60.0), "no interaction", "cup") for i in range(7)]
    drawn = draw_pairs("data:,", (128, 128), numbered(pairs), "alt")
    chips = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="16.0" rx="3"', drawn)
    places = [tuple(map(float, chip)) for chip in chips]
    assert len(places) == 7
    for i, (x, y, width) in enumerate(places):
        assert x >= 0
        assert x + width <= 360
        assert y >= 0
        assert y + 16 <= 360
        for a, b, w in places[:i]:
            assert abs(y - b) >= 16 or x >= a + w or a >= x + width


def test_images_of_every_source_load_upright(tmp_path: Path):
    turned = Image.new("RGB", (40, 20), (200, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (20, 40)
    assert load_image(np.zeros((20, 40, 3), np.uint8)).size == (40, 20)
    assert load_image(Image.new("L", (5, 6))).mode == "RGB"
    assert data_uri(Image.new("RGB", (2000, 1000))).startswith("data:image/jpeg;base64,")


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 2.3) == [0, 0.5, 1, 1.5, 2]
    assert charts.ticks(78.5, 88.2) == [80, 82, 84, 86, 88]
    assert charts.ticks(3, 3) == [3]


def test_curves_survive_odd_values():
    assert "polyline" in charts.line_chart([1, 2, 3], [float("nan"), 1.0, float("inf")], "loss")
    assert "polyline" in charts.line_chart([5], [0.0], "one point")
    assert charts.line_chart([1], [float("nan")], "nothing") == ""
    assert charts.line_chart(range(5000), np.linspace(2, 1, 5000), "long").count(",") < 2000


def test_empty_pages_are_pages(tmp_path: Path):
    nothing = evaluation() | {"per_class": []}
    report.write_report(tmp_path / "a.html", report.ReportData("run", "labels", nothing))
    folder_page.write_folder_page(tmp_path / "b.html", folder_page.FolderPage("photos", "none", []))
    report.write_experiments_page(tmp_path / "c.html", report.ExperimentsPage("none", "", []))
    assert "no table was read" in (tmp_path / "a.html").read_text()


def test_a_image_that_shows_everything_comes_in_once_a_card(pages: dict[str, Path]):
    assert pages["folder"].read_text().count("data:image/jpeg") == len(gallery(5))


def test_an_image_that_no_prompt_matches_says_so(tmp_path: Path):
    item = replace(gallery(1)[0], matches=[Match("a photo of a person riding a kite", 0.4)])
    for probability, said in ((0.4, True), (0.6, False)):
        shown = replace(item, matches=[replace(item.matches[0], probability=probability)])
        folder_page.write_folder_page(tmp_path / "page.html", folder_page.FolderPage("photos", "About.", [shown]))
        assert ("None matches" in (tmp_path / "page.html").read_text()) == said


@pytest.mark.parametrize("kind", ["report", "folder"])
def test_a_score_that_is_no_probability_is_called_uncalibrated(kind: str, pages: dict[str, Path]):
    assert "uncalibrated" in Reader(pages[kind].read_text()).text


def test_a_report_says_what_to_type_next(tmp_path: Path):
    run = tmp_path / "0a1b"
    data = replace(run_report(), commands=next_commands(Path("my setup.yaml"), run))
    report.write_report(tmp_path / "page.html", data)
    text = Reader((tmp_path / "page.html").read_text()).text
    assert "hoi-distill view 'my setup.yaml'" in text
    assert f"hoi-distill predict {run}/checkpoint IMAGE --out predicted" in text
    assert "tensorboard" not in text
    (run / "tensorboard").mkdir(parents=True)
    assert ("The curves in TensorBoard", f"tensorboard --logdir {run}/tensorboard") in next_commands(Path("a"), run)


def test_both_axes_of_a_chart_have_names():
    drawn = charts.scatter_chart([charts.Point(3, 50, "a class")], "annotated training pairs", "AP (%)", 10)
    assert ">annotated training pairs</text>" in drawn
    assert ">AP (%)</text>" in drawn
    assert ">mAP, percent</text>" in charts.dot_chart([charts.DotRow("an arm", (50.0, 51.0))], "full")
    assert ">training step</text>" in charts.line_chart([1, 2], [1.0, 0.5], "loss")


def test_a_folder_shows_boxes_pairs_and_triplets_of_small_images(tmp_path: Path):
    box = {"box": [10, 10, 60, 90], "score": 0.87, "label": MARKUP}
    read, dropped = [("ride bicycle", 0.5, "riding a bike")], [(MARKUP, "no such object")]
    item = replace(gallery(2)[1], boxes=[box], triplets=[("a photo of", read, dropped)])
    folder_page.write_folder_page(tmp_path / "page.html", folder_page.FolderPage("photos", "About.", [item] * 3))
    text = (tmp_path / "page.html").read_text()
    page = Reader(text)
    assert text.count("Annotated pairs") == text.count("Detected boxes") == 3
    assert f"{MARKUP} 0.87" in page.text
    assert "ride bicycle" in page.text
    assert "no such object" in page.text
    assert text.count("data:image/jpeg") == 3, "both drawings share an image"
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]


def test_a_photograph_takes_little_room_on_the_page_of_its_folder(tmp_path: Path):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (30, 45, 3), np.uint8)).resize((1500, 1000), Image.Resampling.BICUBIC)
    items = [replace(item, image=photo, captions=(), matches=()) for item in gallery(8)]
    folder_page.write_folder_page(tmp_path / "page.html", folder_page.FolderPage("photos", "About.", items))
    assert (tmp_path / "page.html").stat().st_size < 8 * 40_000


@pytest.mark.parametrize("kind", ["report", "folder"])
def test_fifty_hostile_texts_are_shown_as_text_and_nothing_of_them_is_lost(kind: str, tmp_path: Path):
    shown = [
        replace(gallery(1)[0], title=os.fsencode(name).decode("utf-8", "backslashreplace"), captions=[("", caption)])
        for name, caption in zip((NAMES * 2)[: len(CAPTIONS)], CAPTIONS, strict=True)
    ]
    if kind == "report":
        report.write_report(tmp_path / "page.html", replace(run_report(), gallery=shown))
    else:
        folder_page.write_folder_page(tmp_path / "page.html", folder_page.FolderPage("photos", "About.", shown))
    page = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    for item in shown:
        assert item.title in page.text
        assert item.captions[0][1] in page.text
    assert {"iframe", "base", "object", "embed"}.isdisjoint(tag for tag, _ in page.tags)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
