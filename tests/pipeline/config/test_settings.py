"""Zero-shot and few-shot by configuration: what training sees, what it is named by, and what the run says of it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoTokenizer, BlipForImageTextRetrieval, BlipImageProcessorPil, BlipProcessor

from hoi_distill.pipeline.config.student import DataSection, FewShotSection
from hoi_distill.pipeline.filling.run import choose_executor, fill
from hoi_distill.pipeline.records import Place, record_of, run_of
from hoi_distill.pipeline.reports.arms import MarkdownPage, markdown
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.agreement import pair_teacher_tables
from hoi_distill.pipeline.training.annotations import labels_of
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.training.fit import training_set
from hoi_distill.pipeline.training.request import Resolved, resolve
from hoi_distill.pipeline.training.section import student_section
from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.data.pico.splits import pico_zero_shot
from hoi_distill.stages.data.pico.world import pico_vocabulary, write_world
from hoi_distill.stages.data.sampling.few_shot import FewShot
from hoi_distill.stages.data.swig_hoi import swig_vocabulary
from hoi_distill.stages.data.zero_shot import split_of, splits_of
from hoi_distill.stages.evaluate.pages.report import Arm, ExperimentsPage, Run, write_experiments_page
from hoi_distill.stages.student.method import Needs
from hoi_distill.storage.errors import UserError
from tests.fixtures.swig_files import write as write_swig

ROOT = Path(__file__).parents[3]
LABELLED = 24
PICO, SWIG = pico_vocabulary(), swig_vocabulary()


@pytest.fixture(scope="module")
def config(tmp_path_factory, blip_config) -> Path:
    """A filled cache for a pair classifier: 40 images, 24 of them labelled, true boxes, a tiny teacher's maps."""
    root = tmp_path_factory.mktemp("settings")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "stages/teacher/pico/itm")
    teacher = str(root / "teacher")
    BlipForImageTextRetrieval(blip_config(vocab_size=len(tokenizer))).save_pretrained(teacher)
    BlipProcessor(BlipImageProcessorPil(size={"height": 64, "width": 64}), tokenizer).save_pretrained(teacher)
    write_world(root / "world", seed=0, train=40, test=20)
    document = {
        "name": "settings",
        "cache": str(root / "cache"),
        "runs": str(root / "runs"),
        "dataset": {"kind": "pico", "root": str(root / "world"), "seed": 0, "train": 40, "test": 20},
        "tables": {
            "detections": {"stage": "ground_truth_boxes"},
            "features": {"stage": "blip_features", "checkpoint": teacher, "columns": ["original"]},
        },
        "student": {
            "labelled": LABELLED, "tables": {"text": None, "captions": None}, "itm_on": "none", "views": ["original"],
            "steps": 2, "labelled_per_step": 4, "width": 16, "warmup_steps": 1,
        },
    }  # fmt: skip
    path = root / "settings.yaml"
    path.write_text(yaml.safe_dump(document))
    with choose_executor("inline", "cpu", 1) as execute:
        fill(prepare(path), execute, threading.Event())
    return path


def resolved(workspace: Workspace) -> Resolved:
    return resolve(workspace, plan_all(workspace))


def with_settings(config: Path, **settings) -> Resolved:
    return resolved(prepare(config, [f"student.{key}={json.dumps(value)}" for key, value in settings.items()]))


def test_a_changed_setting_is_another_training_and_asks_the_teacher_nothing(config):
    plain = with_settings(config)
    found = {
        name: with_settings(config, **settings)
        for name, settings in {
            **{split: {"zero_shot": split} for split in ("RF-UC", "NF-UC", "UO", "UV")},
            "strict": {"zero_shot": "NF-UC", "training_rule": "gen-vlkt"},
            "few": {"few_shot": {"shots": 2}},
            "other seed": {"few_shot": {"shots": 2, "seed": 1}},
            "negatives": {"few_shot": {"shots": 2, "ignore_dropped": False}},
            "both": {"zero_shot": "UV", "few_shot": {"shots": 2}},
        }.items()
    }
    assert len({each.fingerprint for each in [plain, *found.values()]}) == 1 + len(found)
    assert with_settings(config, zero_shot="rf-uc").fingerprint == found["RF-UC"].fingerprint
    assert with_settings(config, training_rule="gen-vlkt").fingerprint == plain.fingerprint, "nothing is unseen"
    for overrides in (["student.zero_shot=UV"], ["student.few_shot={shots: 1}"]):
        assert all(table_plan.counts["empty"] == 0 for table_plan in plan_all(prepare(config, overrides)).values())


@pytest.mark.parametrize("rule", ["ada-cm", "gen-vlkt"])
def test_unseen_annotations_are_in_nothing_that_a_training_is_made_from(config, rule):
    """Other boxes and labels of unseen classes: the same images, annotations, fingerprint."""
    workspace = prepare(config, ["student.zero_shot=NF-UC", f"student.training_rule={rule}"])
    unseen, train = pico_zero_shot("NF-UC").unseen, workspace.dataset["train"]
    clean = resolved(workspace)
    assert not unseen[clean.labels.annotations.hoi].any()
    assert not clean.labels.annotations.image_hois[:, unseen].any()
    assert clean.labels.split is pico_zero_shot("NF-UC")

    # Images with nothing else are left out, and said to be.
    seen = np.zeros(40, bool)
    np.logical_or.at(seen, train.pair_image(), ~unseen[train.hoi])
    if rule == "ada-cm":
        assert clean.records.tolist() == np.flatnonzero(seen[:LABELLED]).tolist()
    [(reason, count)] = clean.left_out.items()
    assert reason == f"no annotation outside NF-UC's unseen classes ({rule})"
    assert count == LABELLED - len(clean.records) > 0

    hidden = unseen[train.hoi]
    poisoned = replace(
        train,
        hoi=np.where(hidden, np.flatnonzero(unseen)[0], train.hoi).astype(np.int16),
        human_box=np.where(hidden[:, None] & (rule == "ada-cm"), [0, 0, 9, 9], train.human_box).astype(np.float32),
        image_hois=train.image_hois ^ unseen,
    )
    again = resolved(replace(workspace, dataset={**workspace.dataset, "train": poisoned}))
    assert again.fingerprint == clean.fingerprint
    assert np.array_equal(again.records, clean.records)
    assert again.evaluation != clean.evaluation, "which classes are rare is counted in all annotations"
    assert resolved(replace(prepare(config), dataset={**workspace.dataset, "train": poisoned})).fingerprint != (
        resolved(prepare(config)).fingerprint
    )


def test_few_shots_are_drawn_among_the_labelled_images_and_nested(config):
    drawn = []
    for shots in (1, 2, 4):
        found = with_settings(config, few_shot={"shots": shots})
        few, labels, train = found.labels.few, found.labels, prepare(config).dataset["train"]
        assert few is not None
        drawn.append({(name, entry) for name, entries in few.entries.items() for entry in entries})
        first = train.take(np.arange(LABELLED))
        counts = np.bincount(first.hoi, minlength=58)
        assert np.array_equal(labels.seen(), np.minimum(counts, shots))
        assert np.array_equal(labels.before, counts)
        assert sorted(train.image_id[found.records[found.labelled]]) == sorted(few.entries)
        assert found.records.tolist() == np.flatnonzero(labels.labelled).tolist()
        assert labels.dropped is not None
        with_any = np.diff(first.pair_offsets)[found.records].sum()
        assert len(labels.dropped.hoi) + len(labels.annotations.hoi) == with_any
        assert labels.annotations.image_hois is None
    assert drawn[0] < drawn[1] < drawn[2]


def test_images_that_were_not_drawn_are_unlabelled(config):
    """Where a training looks at unlabelled images, they come first among them."""
    found = with_settings(config, few_shot={"shots": 1}, encoder="region_cnn")
    assert found.records.tolist() == list(range(40))
    assert 0 < found.labelled.sum() < LABELLED
    assert not found.labelled[LABELLED:].any()
    zero = with_settings(config, zero_shot="NF-UC", encoder="region_cnn")
    assert len(zero.records) == 40 - sum(zero.left_out.values()), "left out as unlabelled images too"


def test_a_image_listed_twice_is_drawn_from_once(config):
    workspace = prepare(config, ["student.few_shot={shots: 32}"])
    method, _, images = student_section(workspace)
    labels = labels_of(workspace, images, method, Needs({}, {}), np.arange(3, 40))
    assert labels.few is not None
    assert not labels.labelled[:3].any()
    assert not set(labels.few.entries) & set(workspace.dataset["train"].image_id[:3].tolist())


def test_few_shots_of_a_zero_shot_training_are_of_seen_classes(config):
    found = with_settings(config, zero_shot="UV", few_shot={"shots": 4})
    unseen = pico_zero_shot("UV").unseen
    assert found.labels.seen()[unseen].sum() == 0 < found.labels.before[unseen].sum()
    assert found.labels.dropped is not None
    assert not unseen[found.labels.dropped.hoi].any()


def test_a_saved_list_is_used_as_it_is(config, tmp_path):
    drawn = with_settings(config, few_shot={"shots": 2, "seed": 1})
    assert drawn.labels.few is not None
    file = tmp_path / "list.json"
    drawn.labels.few.save(file)
    section = {"shots": 2, "seed": 1, "file": str(file)}
    assert with_settings(config, few_shot=section).fingerprint == drawn.fingerprint
    for change, said in (
        ({"few_shot": {**section, "shots": 4}}, "few_shot.shots: 4, but"),
        ({"few_shot": {**section, "file": "nowhere.json"}}, "nowhere.json: not a few-shot list"),
        ({"few_shot": section, "labelled": 2}, "student.few_shot: few-shot list of pico world: no image"),
    ):
        with pytest.raises(UserError) as refusal:
            with_settings(config, **change)
        assert said in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("zero_shot=UC0", "student.zero_shot: no zero-shot split 'UC0'; there are RF-UC, NF-UC, UO, UV"),
        ("training_rule=strict", "student.training_rule: expected ada-cm or gen-vlkt; got 'strict'"),
        ("few_shot={shots: 0}", "student.few_shot.shots: expected at least 1; got 0"),
        ("few_shot={shots: 1, shot: 1}", "student.few_shot.shot: unknown key"),
        ("labelled=41", "student.labelled: 41 of only 40 training images"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(config, change, said):
    with pytest.raises(UserError) as refusal:
        resolved(prepare(config, [f"student.{change}"]))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("setting", ["student.zero_shot=UV", "student.few_shot={shots: 1}"])
def test_a_method_that_cannot_leave_annotations_out_says_so(config, tmp_path, setting):
    document = yaml.safe_load(config.read_text())
    document["student"] = {"method": "vlm_hoi", "labelled": 4, "tables": {"text": None}, "itm": {"weight": 0}}
    other = tmp_path / "vlm_hoi.yaml"
    other.write_text(yaml.safe_dump(document))
    with pytest.raises(
        UserError, match="vlm_hoi cannot leave annotations out of its loss; methods that can: pair_class"
    ):
        resolved(prepare(other, [setting]))


def test_controls_that_read_all_annotations_know_no_few_shots(config):
    with pytest.raises(UserError, match="reads all annotations, drawn or not; choose another teacher"):
        with_settings(config, few_shot={"shots": 1}, itm_on="labelled", teacher="oracle")


def test_the_documented_section_is_sound_and_its_sizes_are_the_splits(config):
    page = (ROOT / "docs/settings.md").read_text()
    student = yaml.safe_load(page.split("```yaml")[1].split("```")[0])["student"]
    assert with_settings(config, **{**student, "labelled": LABELLED}).labels.few is not None
    pico, swig = ([int(make().unseen.sum()) for make in splits_of(words).values()] for words in (PICO, SWIG))
    assert pico[0] == pico[1]
    for said in (f"{pico[0]} each", f"{pico[2]} and {pico[3]}: HICO-DET's lists", f"{swig[0]:,}: the evaluated"):
        assert said in page


def refuse_better_taught(workspace, data, needs):
    for teacher in pair_teacher_tables(workspace, data, needs):
        teacher.refuse_better_taught(data)


def test_a_pair_teacher_that_has_seen_more_is_refused():
    node = SimpleNamespace(stage=SimpleNamespace(name="link_pairs", teacher=SimpleNamespace(name="clip")))
    teacher = {"labelled": 24, "zero_shot": "RF-UC"}
    workspace = SimpleNamespace(
        path="a.yaml", nodes={"answers": node}, config=SimpleNamespace(pair_teachers={"clip": teacher})
    )
    needs = Needs({"answers": ("original",)}, {})
    refuse_better_taught(workspace, DataSection(labelled=24, zero_shot="RF-UC"), needs)
    for own in (
        DataSection(labelled=24, zero_shot="UO"),
        DataSection(labelled=24, zero_shot="RF-UC", training_rule="gen-vlkt"),
        DataSection(labelled=24, zero_shot="RF-UC", few_shot=FewShotSection(shots=1)),
        DataSection(labelled=24),
    ):
        with pytest.raises(
            UserError, match=r"a.yaml: pair_teachers.clip.(zero_shot|training_rule|few_shot): .* write the"
        ):
            refuse_better_taught(workspace, own, needs)


def test_a_pair_teacher_whose_few_annotations_were_drawn_among_other_images_is_refused():
    node = SimpleNamespace(stage=SimpleNamespace(name="link_pairs", teacher=SimpleNamespace(name="clip")))
    teacher = {"labelled": 24, "few_shot": {"shots": 1}}
    workspace = SimpleNamespace(
        path="a.yaml", nodes={"answers": node}, config=SimpleNamespace(pair_teachers={"clip": teacher})
    )
    needs, few = Needs({"answers": ("original",)}, {}), FewShotSection(shots=1)
    refuse_better_taught(workspace, DataSection(labelled=24, few_shot=few), needs)
    with pytest.raises(UserError, match=r"a.yaml: pair_teachers.clip.labelled: 24, but its student has 12"):
        refuse_better_taught(workspace, DataSection(labelled=12, few_shot=few), needs)


def test_a_run_tells_seen_from_unseen_and_keeps_its_list(config, tmp_path, capsys):
    workspace = prepare(config, ["student.zero_shot=UV", "student.few_shot={shots: 4, seed: 2}"])
    run = train_student(workspace)
    said = capsys.readouterr().out
    assert "mAP, zero-shot UV: unseen" in said
    assert "The 6 classes of UV are unseen. At most 4 annotations a class" in said

    few = FewShot.load(run / "few_shot.json")
    assert few == resolved(workspace).labels.few
    record = json.loads((run / "student.json").read_text())["pictures"]
    assert record["zero_shot"] == {"split": "UV", "unseen_classes": 6}
    assert (record["few_shot"]["shots"], record["few_shot"]["digest"]) == (4, few.digest())

    evaluation = json.loads((run / "evaluation.json").read_text())
    means = evaluation["zero_shot"]
    judged = [row for row in evaluation["per_class"] if row["ap"] is not None]
    sizes = {
        name: sum(row["unseen"] is hidden for row in judged) for name, hidden in (("unseen", True), ("seen", False))
    }
    assert sizes["unseen"] > 1
    weighted = sum(sizes[name] * means[name] for name in sizes) / len(judged)
    assert weighted == pytest.approx(means["full"], abs=1e-5)
    assert means["full"] == evaluation["default"]["full"]
    assert all(row["training_pairs"] == 0 for row in judged if row["unseen"])
    plain = with_settings(config).labels.before < 10
    assert [row["rare"] for row in evaluation["per_class"]] == plain.tolist(), "the same classes in every setting"

    report = (run / "report.html").read_text()
    assert '<span class="tag">unseen</span>' in report
    assert "Zero-shot" in report
    again = train_student(workspace)
    assert again == run
    assert "Nothing to do" in capsys.readouterr().out

    other = train_student(prepare(config))
    assert "zero_shot" not in json.loads((other / "evaluation.json").read_text())
    assert "Zero-shot" not in (other / "report.html").read_text()
    recorded = {
        folder: run_of(record_of(folder, Place(folder, "m", "a", 0, ""), workspace.dataset["test"]), "a.json")
        for folder in (run, other)
    }
    assert recorded[run].zero_shot == {"unseen": means["unseen"], "seen": means["seen"]}
    assert {"unseen", "seen"} <= recorded[run].outcomes.metrics.keys()
    assert recorded[other].zero_shot == {}


def test_the_table_has_columns_for_unseen_and_seen_only_where_an_arm_has_them(tmp_path):
    figures = {"full": 50.0, "rare": 40.0, "non_rare": 60.0}
    runs = {
        "all": [Run(0, figures, figures, 1.0)],
        "UV": [Run(0, figures, figures, 1.0, {"unseen": 12.5, "seen": 62.5})],
    }
    arms = [Arm(name, name, made) for name, made in runs.items()]
    page = MarkdownPage("m", "", "", (0,))
    assert "| UV | 50.0 | 40.0 | 60.0 | 12.5 | 62.5 | 50.0 | 1 |" in markdown(page, arms)
    assert "| all | 50.0 | 40.0 | 60.0 | – | – | 50.0 | 1 |" in markdown(page, arms)
    assert "| arm | full | rare | non-rare | known object, full | CPU s |" in markdown(page, arms[:1])
    page = tmp_path / "experiments.html"
    for chosen, there in ((runs, True), ({"all": runs["all"]}, False)):
        write_experiments_page(page, ExperimentsPage("m", "", [Arm(name, name, made) for name, made in chosen.items()]))
        assert ("Unseen" in page.read_text()) is there


@pytest.mark.slow
def test_swig_hois_unseen_classes_go_by_the_same_key(config, tmp_path):
    """Open vocabulary: what no training annotation names is predicted, and has its own mean."""
    unseen = split_of(SWIG, "swig").unseen
    hidden = int(np.flatnonzero(unseen)[0])
    surf = 1
    root = tmp_path / "swig"
    (root / "images_512").mkdir(parents=True)
    for split, hois in (("trainval", [surf, surf]), ("test", [surf, hidden])):
        records = []
        for number, hoi in enumerate(hois):
            name = f"{split}_{number}.jpg"
            Image.new("RGB", (100, 80), (90 * number, 9, 9 * len(split))).save(root / "images_512" / name)
            verb, thing = SWIG.hois[hoi].tolist()
            boxes = [([10, 10, 40, 60], 0), ([5, 50, 60, 80], thing)]
            records.append({
                "file_name": name, "img_id": number, "height": 80, "width": 100,
                "box_annotations": [{"bbox": box, "category_id": kind, "aux_category_id": []} for box, kind in boxes],
                "hoi_annotations": [{"subject_id": 0, "object_id": 1, "action_id": verb}],
            })  # fmt: skip
        write_swig(root, records, f"annotations/swig_{split}_1000.json")
    document = yaml.safe_load(config.read_text())
    document["dataset"] = {"kind": "swig-hoi", "root": str(root)}
    document["student"] |= {"labelled": None, "zero_shot": "swig"}
    path = tmp_path / "swig.yaml"
    path.write_text(yaml.safe_dump(document))
    workspace = prepare(path)
    with choose_executor("inline", "cpu", 1) as execute:
        fill(workspace, execute, threading.Event())
    found = resolved(workspace)
    assert found.fingerprint != resolved(prepare(path, ["student.zero_shot=null"])).fingerprint
    assert not training_set(workspace, found).valid()[:, unseen].any()
    run = train_student(workspace)
    predicted = set(pq.read_table(run / "detections.parquet")["hoi"].to_pylist())
    assert hidden in predicted
    means = json.loads((run / "evaluation.json").read_text())["zero_shot"]
    assert means["split"] == "swig"
    assert means["full"] == pytest.approx((means["unseen"] + means["seen"]) / 2)
