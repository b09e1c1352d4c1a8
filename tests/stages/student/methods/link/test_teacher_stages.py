"""A pair teacher's tables hold what its network says of each image, and a student reads it back in place."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hoi_distill.stages.stage import ArrowOutput, TensorOutput, fingerprint_record
from hoi_distill.stages.student.data import valid_classes
from hoi_distill.stages.student.methods.link.config import LinkConfig
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape
from hoi_distill.stages.student.methods.link.pair_teacher import PairTeacher
from hoi_distill.stages.student.methods.link.student import LinkStudent
from hoi_distill.stages.student.methods.link.teacher_stages import LinkMaps, LinkPairs, TrainedTeacher
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.network import PairClassifier, Shape
from hoi_distill.stages.student.methods.pair_classifier.student import PairStudent
from hoi_distill.stages.student.pairs.instances import gather, image_of
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.supervision.config import KdConfig
from hoi_distill.stages.student.pairs.supervision.dense_distillation import read_teacher_outputs
from hoi_distill.stages.student.pairs.supervision.dense_distillation_losses import Answered, distillation_losses
from hoi_distill.stages.student.pairs.terms import BatchImages
from hoi_distill.stages.teacher.detectors.given import DETECTIONS
from hoi_distill.stages.teacher.detectors.transformers import cells as detection_cells
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.stream import SampleStream, StreamSpec, TableRef
from hoi_distill.workers.loading import FEW_PATTERNS
from hoi_distill.workers.task import TableSpec, TableTask, Target, Task, Upstream
from hoi_distill.workers.worker import Worker
from tests.fixtures.link_scenes import SMALL
from tests.fixtures.stages import made
from tests.fixtures.toy_student import CHANNELS, SIDE, VOCABULARY, Toy

COUNT, VIEWS = 20, ("original", "flip")
CONFIG = LinkConfig(network=SMALL)
UPSTREAM = {
    "detections": ({"stage": "detections"}, ArrowOutput(DETECTIONS), ("value",)),
    "features": ({"stage": "features"}, TensorOutput((CHANNELS, SIDE, SIDE)), VIEWS),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """An untrained network, saved as a trained one is."""
    torch.manual_seed(0)
    verb = torch.from_numpy(VOCABULARY.hois[:, 0].astype(np.int64))
    folder = tmp_path_factory.mktemp("trained") / "checkpoint"
    LinkStudent(Link(LinkShape(CHANNELS, None, SMALL), verb).eval(), VOCABULARY, CONFIG).save_pretrained(folder)
    return folder


@pytest.fixture
def teacher(checkpoint) -> TrainedTeacher:
    return TrainedTeacher("clip", "detections", "features", SMALL.width, (SIDE, SIDE), "b5c1", checkpoint)


@pytest.fixture
def world(tmp_path, monkeypatch) -> SimpleNamespace:
    """A cache with detections and features of twenty images; in the second nothing was detected, in the third one box.
    The features of the fourth are a recorded failure."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    toy = Toy(COUNT, 3)
    found = [
        [np.asarray(cell[name], dtype) for name, dtype in (("boxes", "f4"), ("scores", "f4"), ("labels", "i2"))]
        for cell in toy.detections
    ]
    for row, kept in ((1, 0), (2, 1)):
        found[row] = [part[:kept] for part in found[row]]
    values = {
        "detections": {"value": detection_cells(found, [(64, 64)] * COUNT, DETECTIONS)},
        "features": {"original": np.stack(toy.maps), "flip": np.stack(toy.maps)[..., ::-1]},
    }
    rows = as_rows([digest_bytes(b"picture %d" % row) for row in range(COUNT)])
    specs = {name: TableSpec(str(tmp_path / "cache"), name, *UPSTREAM[name][:2]) for name in UPSTREAM}
    for name, (_, _, columns) in UPSTREAM.items():
        failed = {(3, 0): "too dark", (3, 1): "too dark"} if name == "features" else {}
        valid = np.ones((COUNT, len(columns)), bool)
        valid[[row for row, _ in failed]] = False
        specs[name].open().commit(CellBlock(rows, columns, valid, failed), values[name])
    return SimpleNamespace(rows=rows, specs=specs, maps=values["features"], root=str(tmp_path / "cache"))


def table(world, stage) -> TableSpec:
    return TableSpec(world.root, stage.name, fingerprint_record(stage), stage.output)


def fill(world, stages, needed=None) -> None:
    above = {name: Upstream(CellSelection(world.rows, UPSTREAM[name][2])) for name in UPSTREAM}
    everything = np.ones((COUNT, 2), bool)
    wanted = [everything] * len(stages) if needed is None else needed
    tables = tuple(
        TableTask(
            Target(stage.name, stage, table(world, stage), {name: world.specs[name] for name in UPSTREAM}),
            CellSelection(world.rows, VIEWS, wanted=wanted[n]),
            above,
        )
        for n, stage in enumerate(stages)
    )
    worker = Worker("cpu", readers=1)
    worker.run(Task("task", [""] * COUNT, [""] * COUNT, tables))
    worker.close()


def stream(world, stages) -> SampleStream:
    specs = {**world.specs, **{stage.name: table(world, stage) for stage in stages}}
    tables = {
        name: TableRef(
            str(opened.dir),
            opened.fingerprint,
            CellSelection(world.rows, VIEWS if name != "detections" else ("value",)),
        )
        for name, opened in ((name, spec.open()) for name, spec in specs.items())
    }
    return SampleStream(StreamSpec(world.rows, tables, "hoi-distill run"))


@pytest.mark.parametrize("view", VIEWS)
def test_a_student_with_the_teachers_weights_reads_back_what_it_would_say(world, teacher, checkpoint, view):
    """Through Arrow and LMDB shards and the sample stream; other weights have something to learn."""
    stages = [made(LinkPairs, teacher=teacher, batch_size=4), made(LinkMaps, teacher=teacher, batch_size=4)]
    fill(world, stages)
    samples = stream(world, stages)
    assert samples.skipped == {3: "features: too dark"}
    read = samples.__getitems__(list(range(COUNT)))
    images = [image_of(sample["detections"]["value"], CONFIG) for sample in read]
    maps = torch.from_numpy(np.stack([sample["features"][view] for sample in read]))
    regions = gather(images, maps, np.full(len(read), view == "flip"))
    valid, seen = torch.from_numpy(valid_classes(VOCABULARY)), torch.ones(len(VOCABULARY.hois), dtype=torch.bool)
    taught = read_teacher_outputs(
        [sample["link_pairs"][view] for sample in read],
        [sample["link_maps"][view] for sample in read],
        BatchImages(np.arange(len(read)), images, regions, candidates_of(regions, valid), []), valid, seen,
        names=[str(sample["row"]) for sample in read], tables=("link_pairs", "detections"),
    )  # fmt: skip
    assert taught.has.all()
    assert len(taught.logits) > 10
    model = PairTeacher.load(checkpoint).model
    candidates = candidates_of(regions, valid)
    config = KdConfig(("link_pairs",), ("link_maps",), logit=1, query=1, map=1)
    with torch.no_grad():
        answered = [Answered.of(taught.has, regions, candidates, seen)]
        same = distillation_losses(model(regions), [taught], answered, candidates, config=config)
        model.map_norm.weight.mul_(-1)
        other = distillation_losses(model(regions), [taught], answered, candidates, config=config)
    assert all(term.item() < 1e-6 for term in same.values()), same  # half precision, and neighbours' padding
    assert all(other[name] > 1000 * same[name].abs() for name in same), (same, other)


def test_both_tables_take_one_forward_a_batch_and_view(world, teacher):
    calls = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, given, said: calls.append(len(said.latent)) if isinstance(module, Link) else None
    )
    with hook:
        fill(world, [made(LinkPairs, teacher=teacher, batch_size=4), made(LinkMaps, teacher=teacher, batch_size=4)])
    assert calls == [4] * 10  # nineteen sound images in five batches, two views


@pytest.mark.parametrize("seed", range(3))
def test_tables_that_lack_different_rows_each_keep_their_own_values(world, teacher, seed):
    """First some scattered cells of both tables, then the rest: every cell is that of its own image."""
    draw = np.random.default_rng(seed)
    needed = draw.random((2, COUNT, 2)) < 0.5
    assert len(np.unique(np.concatenate(needed, axis=1), axis=0)) > FEW_PATTERNS  # so that batches hold rows of several
    stages = [made(LinkPairs, teacher=teacher, batch_size=COUNT), made(LinkMaps, teacher=teacher, batch_size=COUNT)]
    fill(world, stages, needed)
    fill(world, stages, ~needed)
    network = PairTeacher.load(teacher.checkpoint)
    for sample in stream(world, stages).__getitems__(list(range(COUNT))):
        for view in VIEWS:
            maps = np.array(sample["features"][view])[None]
            (expected,) = network.answer([sample["detections"]["value"]], maps, view == "flip")
            np.testing.assert_allclose(np.float32(sample["link_maps"][view]), expected.latent, atol=2e-3)
            for name, value in expected.cell.items():
                found = sample["link_pairs"][view][name]
                np.testing.assert_allclose(np.float32(found), np.float32(value), atol=4e-3, err_msg=name)


def test_a_fingerprint_names_the_training_and_not_where_it_lies(teacher):
    def prints(stage):
        return fingerprint_record(stage)

    for make in (LinkPairs, LinkMaps):
        first = prints(made(make, teacher=teacher))
        elsewhere = replace(teacher, name="other", checkpoint=Path("/elsewhere"))
        assert prints(made(make, teacher=elsewhere, columns=("flip",), batch_size=2, gpus=1.0)) == first
        assert prints(made(make, teacher=replace(teacher, training="d00d"))) != first
    assert prints(made(LinkMaps, teacher=teacher, codec="int8")) != prints(made(LinkMaps, teacher=teacher))
    assert (
        made(LinkPairs, teacher=teacher).vision_key
        == made(LinkMaps, teacher=teacher).vision_key
        != made(LinkMaps, teacher=replace(teacher, training="d00d")).vision_key
    )


def test_a_view_is_computed_from_that_view_and_the_detections(teacher):
    stage = made(LinkMaps, teacher=replace(teacher, detections="boxes", features="clip_l"))
    assert stage.inputs == ("boxes", "clip_l")
    assert stage.dependencies("flip") == {"boxes": ("value",), "clip_l": ("flip",)}
    assert stage.output.shape == (SMALL.width, SIDE, SIDE)
    with pytest.raises(UserError, match=r"columns\.0: expected original or flip; got 'upside_down'"):
        made(LinkPairs, teacher=teacher, columns=("upside_down",))


def test_an_opened_stage_travels_without_its_network(teacher):
    stage = made(LinkPairs, teacher=teacher)
    stage.open("cpu", {})
    copied = pickle.loads(pickle.dumps(stage))
    assert not hasattr(copied, "network")
    assert fingerprint_record(copied) == fingerprint_record(stage)


def test_stages_of_one_teacher_load_it_once(teacher):
    shared: dict = {}
    stages = [made(LinkPairs, teacher=teacher), made(LinkMaps, teacher=teacher)]
    for stage in stages:
        stage.open("cpu", shared)
    assert stages[0].network is stages[1].network


def test_an_untrained_teacher_is_named(teacher):
    with pytest.raises(UserError, match="clip is not trained yet"):
        made(LinkPairs, teacher=replace(teacher, training=None, checkpoint=None)).open("cpu", {})


@pytest.mark.parametrize("broken", ["missing", "tensor", "method"])
def test_a_missing_partial_or_other_checkpoint_is_refused(tmp_path, checkpoint, broken):
    folder = tmp_path / "checkpoint"
    if broken == "tensor":
        shutil.copytree(checkpoint, folder)
        tensors = load_file(folder / "model.safetensors")
        del tensors[next(iter(tensors))]
        save_file(tensors, folder / "model.safetensors")
    elif broken == "method":
        shape = Shape(CHANNELS, len(VOCABULARY.objects), None, 3, 16, 0.0, 0.0, 14.0)
        model = PairClassifier(shape, torch.from_numpy(VOCABULARY.hois[:, 0].astype(np.int64)))
        PairStudent(model, VOCABULARY, PairClassifierConfig()).save_pretrained(folder)
    with pytest.raises(UserError) as refused:
        PairTeacher.load(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
