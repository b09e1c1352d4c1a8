"""``hoi-distill evaluate`` as a user meets it: what it prints, what it writes, and what it refuses in one line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hoi_distill.pipeline import cli
from hoi_distill.stages.data.hico_det.loader import load_hico_det
from hoi_distill.stages.data.pico.layout import AnnotatedImage, write_annotations
from hoi_distill.stages.data.pico.splits import pico_zero_shot
from hoi_distill.stages.data.pico.world import pico_vocabulary
from hoi_distill.stages.evaluate.detections import HoiDetections
from hoi_distill.stages.evaluate.formats.parquet import write_detections
from hoi_distill.storage.files.writable import PROBE
from tests.fixtures.small_disk import small_disk

WORDS = pico_vocabulary()
FIGURES = {"full", "rare", "non_rare"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in HICO-DET's layout, and ``found.parquet``: most pairs, some of them off, and some nonsense."""
    root, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)

    def image(split: str, number: int) -> AnnotatedImage:
        boxes = np.array([(0, 0, 20, 40), (10, 5, 64, 48)]) + rng.integers(0, 5, 4)
        hoi = number % 7 if split == "train" or number % 3 else 40
        return AnnotatedImage(
            f"HICO_{split}2015_{number:08d}.jpg", 80, 60, boxes, WORDS.hois[[hoi, hoi], 1], [(0, 1, hoi)]
        )

    sizes = {"train": 90, "test": 40}
    write_annotations(root, WORDS, {name: [image(name, n) for n in range(size)] for name, size in sizes.items()})
    test = load_hico_det(root, "test", images=False)
    rows = np.repeat(np.arange(len(test.hoi)), 3)
    hoi = np.where(rng.random(len(rows)) < 0.6, test.hoi[rows], rng.integers(0, 45, len(rows)))
    verb, thing = WORDS.hois[hoi].T.astype(np.int32)
    found = HoiDetections(
        test.pair_image()[rows].astype(np.int32), test.human_box[rows] + rng.integers(0, 9, (len(rows), 1)),
        test.object_box[rows], thing, verb, hoi.astype(np.int32), rng.random(len(rows)).astype(np.float32),
    )  # fmt: skip
    write_detections(root / "found.parquet", found, test.image_id)
    return root


def run(capsys: pytest.CaptureFixture[str], world: Path, *options: str | Path) -> tuple[int, str, str]:
    """Exit code, output and errors of ``hoi-distill evaluate`` on the world."""
    arguments = ["--annotations", world, "--detections", world / "found.parquet", *options]
    sys.argv = ["hoi-distill", "evaluate", *map(str, arguments)]
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_json_has_the_figures_and_leaves_no_files(world: Path, capsys: pytest.CaptureFixture[str]):
    before = sorted(world.iterdir())
    code, output, _ = run(capsys, world, "--json")
    record = json.loads(output)
    assert code == 0
    assert record["convention"] == "official"
    assert set(record["default"]) == set(record["known_object"]) == FIGURES
    assert 0 < record["default"]["full"] < record["known_object"]["full"] <= 100
    assert record["seconds"] >= 0
    assert sorted(world.iterdir()) == before


def test_a_table_a_page_a_csv_and_the_record(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, output, errors = run(capsys, world, "--out", tmp_path, "--bootstrap", "50")
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert (code, errors) == (0, "")
    for line in ("default", "known object", f"{record['default']['full']:.2f}", "evaluation.html"):
        assert line in output
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ap"]) if row["ap"] else None for row in rows] == [row["ap"] for row in record["per_class"]]
    bounds = record["intervals"]["default"]["full"]
    assert bounds["low"] < record["default"]["full"] < bounds["high"]
    assert f"{record['default']['full']:.2f} ({bounds['low']:.1f}-{bounds['high']:.1f})" in output
    kinds = {row["kind"]: row["all"] for row in record["errors"]["detections"]}
    assert sum(kinds.values()) == record["counts"]["detections"]
    assert kinds["right"] == sum(row["found"] for row in record["per_class"])
    missed = sum(row["pairs"] for row in record["errors"]["missed_pairs"])
    assert kinds["right"] + missed == record["counts"]["pairs"]
    assert "<title>found.parquet" in (tmp_path / "evaluation.html").read_text()


def test_files_go_beside_the_detections_by_default(world: Path, capsys: pytest.CaptureFixture[str]):
    run(capsys, world, "--bootstrap", "0")
    folder = world / "found-evaluation"
    assert {path.name for path in folder.iterdir()} == {"evaluation.html", "evaluation.json", "per_class.csv"}
    assert "intervals" not in json.loads((folder / "evaluation.json").read_text())
    _, output, _ = run(capsys, world, "--bootstrap", "0", "--convention", "QPIC")
    assert str(world / "found-evaluation-qpic" / "evaluation.html") in output
    assert json.loads((folder / "evaluation.json").read_text())["convention"] == "official"


def test_a_convention_and_a_switch_change_the_figures(world: Path, capsys: pytest.CaptureFixture[str]):
    official, thid, one = (
        json.loads(run(capsys, world, "--json", *options)[1])
        for options in ((), ("--convention", "THID"), ("--switch", "top_per_image=1"))
    )
    assert official["default"] != thid["default"]
    assert (thid["convention"], thid["switches"]["box_area"]) == ("thid", "plain")
    assert one["default"]["full"] < official["default"]["full"]
    assert one["switches"]["top_per_image"] == 1


@pytest.mark.parametrize("name", ["RF-UC", "uv"])
def test_zero_shot_means_are_of_the_vocabularys_own_splits(name: str, world: Path, capsys: pytest.CaptureFixture[str]):
    record = json.loads(run(capsys, world, "--json", "--zero-shot", name)[1])
    unseen = pico_zero_shot(name.upper()).unseen
    assert [row["unseen"] for row in record["per_class"]] == unseen.tolist()
    aps = [(row["ap"], row["unseen"]) for row in record["per_class"] if row["ap"] is not None]
    for key, wanted in (("unseen", True), ("seen", False)):
        assert record["zero_shot"][key] == pytest.approx(np.mean([ap for ap, side in aps if side == wanted]), abs=1e-5)
    assert record["zero_shot"]["full"] == record["default"]["full"]


def test_rare_is_said_by_the_first_training_images(world: Path, capsys: pytest.CaptureFixture[str]):
    whole, few = (
        json.loads(run(capsys, world, "--json", *options)[1])["counts"]["rare_classes"]
        for options in ((), ("--labelled", "20"))
    )
    assert whole < few


def test_exported_detections_evaluate_the_same(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = json.loads(
        run(capsys, world, "--json", "--export", f"hico-mat={tmp_path}/mat", "--export", f"coco={tmp_path}/c.json")[1]
    )
    second = json.loads(run(capsys, world, "--json", "--detections", tmp_path / "mat")[1])
    assert {key: first[key] for key in ("default", "known_object", "counts")} == {
        key: second[key] for key in ("default", "known_object", "counts")
    }
    boxes = json.loads((tmp_path / "c.json").read_text())
    assert {"image_id", "category_id", "bbox", "score"} == set(boxes[0])


@pytest.mark.parametrize(
    "form", ["QPIC's text of a dict", "QPIC's with a byte order mark", "a folder of Parquet parts"]
)
def test_the_form_of_the_detections_is_found(
    form: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = pq.read_table(world / "found.parquet")
    file = tmp_path / "found"
    if "Parquet" in form:
        file.mkdir()
        pq.write_table(found, file / "part-0.parquet")
    else:
        images: dict[str, dict] = {}
        for row in found.to_pylist():
            image = images.setdefault(
                row["image_id"], {"filename": row["image_id"], "predictions": [], "hoi_prediction": []}
            )
            place = len(image["predictions"])
            for box, label in ((row["human_box"], 0), (row["object_box"], row["object"])):
                image["predictions"].append({"bbox": [*box[:2], box[2] - 1, box[3] - 1], "category_id": label})
            ids = {"subject_id": place, "object_id": place + 1, "category_id": row["verb"]}
            image["hoi_prediction"].append({**ids, "score": row["score"]})
        record = {"preds": list(images.values()), "gts": []}
        mark = "mark" in form
        file.write_text(json.dumps(record if mark else str(record)), encoding="utf-8-sig" if mark else "utf-8")
    ours = json.loads(run(capsys, world, "--json")[1])
    code, output, _ = run(capsys, world, "--json", "--detections", file)
    assert code == 0
    assert json.loads(output)["default"] == ours["default"]


def test_exports_are_told_and_all_checked_before_any_is_written(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    good = tmp_path / "c.json"
    code, _, _ = run(capsys, world, "--export", f"coco={good}", "--export", f"v-coco-json={tmp_path}/v.json")
    assert (code, good.exists()) == (2, False)
    _, output, _ = run(capsys, world, "--bootstrap", "0", "--out", tmp_path, "--export", f"coco={good}")
    assert f"Exported as coco: {good}" in output


NOWHERE = Path("/proc/self")
"""A folder in which nobody can make a file."""


@pytest.mark.parametrize(
    "options",
    [
        ("--out", NOWHERE / "page"),
        ("--json", "--export", f"coco={NOWHERE}/boxes.json"),
        ("--json", "--export", f"hico-mat={NOWHERE}/mat"),
        ("--detections", NOWHERE / "found.parquet"),
    ],
)
def test_a_place_that_cannot_be_written_is_known_before_the_work(
    options: tuple[str | Path, ...], world: Path, capsys: pytest.CaptureFixture[str]
):
    code, output, errors = run(capsys, world, "--annotations", "absent", *options)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert f"{NOWHERE}/" in errors
    assert "cannot be written" in errors


def test_where_the_place_runs_full_no_half_page_is_left_and_the_older_one_stays(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ("--out", tmp_path, "--bootstrap", "0")
    assert run(capsys, world, *options)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 3
    limit = len(PROBE) + 1
    assert len(before["evaluation.json"]) < limit < len(before["evaluation.html"])
    with small_disk(limit):
        code, output, errors = run(capsys, world, *options, "--convention", "thid")
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert f"--out {tmp_path}: cannot be written: " in errors
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_detections_are_evaluated_with_a_warning(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    table = pq.read_table(world / "found.parquet")
    pq.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    code, output, errors = run(capsys, world, "--detections", tmp_path / "none.parquet", "--bootstrap", "0")
    assert (code, errors.count("\n")) == (0, 1)
    assert "no detections" in errors
    assert "0.00" in output


def test_a_negative_seed_is_refused(world: Path, capsys: pytest.CaptureFixture[str]):
    code, _, errors = run(capsys, world, "--seed", "-1")
    assert code == 2
    assert "greater than or equal to 0" in " ".join(errors.split())


def test_annotations_of_ones_own(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The same images and pairs give the same figures in a folder's JSON as in HICO-DET's layout."""

    def images(split: str) -> list[dict]:
        read = load_hico_det(world, split, images=False)
        return [
            {
                "file_name": str(name), "split": split, "width": 80, "height": 60,
                "pairs": [
                    {
                        "human_box": read.human_box[p].tolist(), "object_box": read.object_box[p].tolist(),
                        "object": WORDS.objects[read.object[p]], "verbs": [WORDS.verbs[read.verb[p]]],
                    }
                    for p in range(read.pair_offsets[i], read.pair_offsets[i + 1])
                ],
            }
            for i, name in enumerate(read.image_id)
        ]  # fmt: skip

    WORDS.save(tmp_path / "words.json")
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"vocabulary": "words.json", "pictures": images("train") + images("test")}))
    official, folder = (
        json.loads(run(capsys, world, "--json", *options)[1])
        for options in ((), ("--dataset", "folder", "--annotations", own))
    )
    assert folder["dataset"] == "folder"
    assert {key: folder[key] for key in ("default", "counts")} == {key: official[key] for key in ("default", "counts")}


REFUSED = {
    "unknown dataset": (("--dataset", "hicodet"), "--dataset hicodet: there are hico-det, v-coco, swig-hoi, folder"),
    "unknown format": (("--format", "csv"), "--format csv: there are auto, parquet"),
    "unknown convention": (("--convention", "offical"), "did you mean official?"),
    "unknown switch": (("--switch", "grid=exact"), "there is no switch 'grid'"),
    "a switch without a value": (
        ("--switch", "recall_grid"),
        "recall_grid=VALUE, where VALUE is official, linspace, exact",
    ),
    "unknown value of a switch": (("--switch", "recall_grid=10"), "recall_grid is official or linspace"),
    "unknown split": (("--split", "val"), "val"),
    "zero-shot of another vocabulary": (
        ("--zero-shot", "UC0"),
        "no zero-shot split 'UC0'; there are RF-UC, NF-UC, UO, UV",
    ),
    "unknown zero-shot split": (("--zero-shot", "RF"), "no zero-shot split 'RF'; there are RF-UC"),
    "frame of a Parquet file": (("--frame", "one_based"), "leave it out"),
    "an option of HICO-DET": (("--dataset", "v-coco", "--zero-shot", "UV"), "--zero-shot belongs to hico-det"),
    "a convention of HICO-DET": (("--dataset", "swig-hoi", "--convention", "qpic"), "has its official one only"),
    "unknown export": (("--export", "csv=out"), "write KIND=PATH, where KIND is hico-mat"),
    "export without a path": (("--export", "coco"), "write KIND=PATH"),
    "export of another dataset": (("--export", "v-coco-json=out"), "hico-det is exported as hico-mat or coco"),
    "image labels that are no .mat": (("--image-labels", __file__), "not a readable MATLAB file"),
    "no such detections": (("--detections", "absent.parquet"), "absent.parquet: there is no such file"),
    "no detections named": (("--detections", ""), "no such file; a folder of detections has one for every object"),
    "no such annotations": (("--annotations", "absent"), "absent"),
    "detections that are no JSON": (("--format", "qpic"), "found.parquet"),
    "detections that are no folder": (("--format", "pocket"), "there is no such folder"),
    "HICO-DET in V-COCO's form": (("--format", "v-coco"), "has no detections in the format v-coco"),
    "a file where the folder should go": (("--out", __file__), "a file; name a folder to write into"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_questions_are_refused_in_one_line(case: str, world: Path, capsys: pytest.CaptureFixture[str]):
    options, complaint = REFUSED[case]
    code, output, errors = run(capsys, world, *options)
    assert (code, output) == (2, "")
    assert complaint in errors
    assert errors.startswith("hoi-distill: ")
    assert errors.count("\n") == 1


def test_the_command_imports_neither_torch_nor_ray_nor_a_teacher(world: Path):
    code = (
        "import sys; from hoi_distill.pipeline.cli import main\n"
        f"sys.argv = ['x', 'evaluate', '--annotations', {str(world)!r}, '--detections', {str(world / 'found.parquet')!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {name.split('.')[0] for name in sys.modules} & {'torch', 'ray', 'transformers', 'pandas'}\n"
        "assert not heavy and 'hoi_distill.stages.teacher' not in sys.modules, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
