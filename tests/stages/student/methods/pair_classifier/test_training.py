"""Training: exact resume, named failures, arms that differ only where they say, checkpoints that are what they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.evaluate.detections import SCHEMA
from hoi_distill.stages.student.data import TrainingSet, valid_classes
from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.method import PairClassifierMethod
from hoi_distill.stages.student.methods.pair_classifier.region_cnn import (
    LiveMaps,
    RegionCNNConfig,
    StoredMaps,
    map_reader,
)
from hoi_distill.stages.student.methods.pair_classifier.soft_labels import soft_labels
from hoi_distill.stages.student.methods.pair_classifier.train import build_model, terms_of, train
from hoi_distill.stages.student.pairs.batches import PairBatches, Pools, Share, TableMaps, take
from hoi_distill.stages.student.pairs.instances import gather, image_of
from hoi_distill.stages.student.pairs.prepare import image_table
from hoi_distill.stages.student.pairs.regions import candidates_of
from hoi_distill.stages.student.pairs.terms import Supervision
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.stages.student.source import CacheSource
from hoi_distill.stages.student.student import Student
from hoi_distill.stages.student.training.metrics import NonFiniteLoss
from hoi_distill.stages.student.training.resume import save_state
from hoi_distill.storage.cache import Cache
from hoi_distill.storage.cell_block import CellBlock
from hoi_distill.storage.digests import as_rows, digest_bytes
from hoi_distill.storage.errors import UserError
from hoi_distill.storage.selection import CellSelection
from hoi_distill.storage.stream import StreamSpec, TableRef
from tests.fixtures.toy_student import CHANNELS, SIDE, VOCABULARY, Toy, weights


def quiet(line: str) -> None:
    pass


TO_BE_KILLED = """
import sys, time
from pathlib import Path
import hoi_distill.stages.student.training.loop as story
from hoi_distill.stages.student.method import Extras
from hoi_distill.stages.student.methods.pair_classifier.config import PairClassifierConfig
from hoi_distill.stages.student.methods.pair_classifier.train import train
from tests.fixtures.toy_student import Toy

save = story.save_state

def save_and_say(path, model, optimizer, done, run, more):
    save(path, model, optimizer, done, run, more=more)
    print("saved", done, flush=True)

story.save_state = save_and_say
config = PairClassifierConfig(**eval(sys.argv[2]))
train(config, Toy(40, 0).training_set(16), Path(sys.argv[1]), Extras(report=lambda line: None))
"""


def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path, toy, config):
    config = replace(config, steps=400, save_every=4)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[5]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TO_BE_KILLED, str(tmp_path / "killed"), repr(asdict(config))]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("saved 12"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoint").exists()

    # The learning rate's schedule depends on the number of steps, so all three runs must mean to do 400; the two that
    # go on here are stopped by hand after 40.
    lines: list[str] = []
    for name in ("killed", "undisturbed"):
        stopped_after(40, config, toy, tmp_path / name, lines.append)
    resumed = [line for line in lines if line.startswith("resumed")]
    assert len(resumed) == 1
    assert 12 <= int(resumed[0].split()[3]) < 40
    killed, whole = (load_file(tmp_path / name / "state" / "latest.safetensors") for name in ("killed", "undisturbed"))
    assert killed.keys() == whole.keys()
    assert any(name.startswith("optimizer.") for name in whole)
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    killed_log, whole_log = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("killed", "undisturbed")
    )
    for record in (*killed_log, *whole_log):
        del record["seconds"]
    assert killed_log == whole_log
    assert [record["step"] for record in whole_log] == list(range(3, 40, 3))


def stopped_after(steps: int, config: PairClassifierConfig, toy: Toy, folder: Path, report) -> None:
    """Train on one thread, as the killed process did, until the state after ``steps`` is saved."""

    def save_and_stop(path, model, optimizer, done, run, more):
        save_state(path, model, optimizer, done, run, more=more)
        if done == steps:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hoi_distill.stages.student.training.loop.save_state", save_and_stop)
            with pytest.raises(KeyboardInterrupt):
                train(config, toy.training_set(16), folder, Extras(report=report))
    finally:
        torch.set_num_threads(threads)


def test_a_state_of_another_run_is_not_resumed(tmp_path, toy, config):
    train(config, toy.training_set(16), tmp_path, Extras(report=quiet))
    with pytest.raises(UserError, match=r"latest\.safetensors: the state of another run"):
        train(replace(config, learning_rate=0.5), toy.training_set(16), tmp_path, Extras(report=quiet))


def test_nan_stops_the_run_and_names_the_image(tmp_path, toy, config):
    broken = Toy(40, 0)
    broken.maps[7][0, 0, 0] = np.nan
    broken.tables["features"]["flip"][7] = broken.maps[7]
    with pytest.raises(NonFiniteLoss, match=r"step \d+: .*rows \[7\], image ids \['image 7'\]"):
        train(config, broken.training_set(16), tmp_path, Extras(report=quiet))
    assert not (tmp_path / "checkpoint").exists()


def test_soft_labels_of_no_weight_change_nothing(tmp_path, toy, config):
    train(replace(config, itm_on="none"), toy.training_set(16), tmp_path / "labels", Extras(report=quiet))
    train(replace(config, itm_weight=0.0), toy.training_set(16), tmp_path / "weightless", Extras(report=quiet))
    train(config, toy.training_set(16), tmp_path / "distilled", Extras(report=quiet))
    assert weights(tmp_path / "labels") == weights(tmp_path / "weightless") != weights(tmp_path / "distilled")


def test_labels_of_unlabelled_images_are_never_read(tmp_path, toy, config):
    other = Toy(40, 0)
    other.annotations.hoi[16:] = 0
    other.annotations.human_box[16:] = 0
    train(config, toy.training_set(16), tmp_path / "true", Extras(report=quiet))
    train(config, other.training_set(16), tmp_path / "changed", Extras(report=quiet))
    assert weights(tmp_path / "true") == weights(tmp_path / "changed")


@pytest.mark.parametrize("teacher", ["itm", "shuffled", "oracle", "self"])
@pytest.mark.parametrize("itm_on", ["labelled", "unlabelled"])
def test_every_arm_trains(tmp_path, toy, config, teacher, itm_on):
    arm = replace(config, teacher=teacher, itm_on=itm_on, steps=4)
    train(arm, toy.training_set(16), tmp_path / "run", Extras(report=quiet))
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    assert np.isfinite([last["loss"], last["loss/pairs"], last["loss/itm"]]).all()
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_soft_labels_find_what_images_show_unless_shuffled(tmp_path, toy, config):
    data = toy.training_set(16)
    images = train_images(tmp_path, toy, config)
    for teacher, low, high in (("itm", 0.95, 1), ("oracle", 1, 1), ("shuffled", 0, 0.5)):
        soft = soft_labels(tmp_path, data, images, replace(config, teacher=teacher))(np.arange(40))
        assert np.isnan(soft[:16]).all()
        assert low <= (soft[16:].argmax(1) == toy.hoi[16:]).mean() <= high


def test_trainings_of_the_same_cells_share_one_file_of_scores(tmp_path, toy, config):
    data, shared = replace(toy.training_set(16), values={"itm": "cells of today"}), tmp_path / "shared"
    data = replace(data, source=replace(data.source, rows_digest="images of today"))
    images = train_images(tmp_path, toy, config)

    def read(run: str, data: TrainingSet) -> np.ndarray:
        labels = soft_labels(tmp_path / run, data, images, config, shared=shared)
        assert labels is not None
        return np.asarray(labels.values)

    first = read("a", data)
    (scores,) = shared.iterdir()
    changed = scores.stat().st_mtime_ns
    assert np.array_equal(read("b", data), first, equal_nan=True)
    assert ([scores], changed) == ([*shared.iterdir()], scores.stat().st_mtime_ns)
    assert not (tmp_path / "a").exists(), "the run keeps none of its own"

    read("c", replace(data, values={"itm": "cells of tomorrow"}))
    read("d", replace(data, prompts=[None, *data.prompts[1:]]))
    assert len([*shared.iterdir()]) == 3, "other cells and other columns are another file"


def test_a_run_that_keeps_its_own_scores_goes_on_reading_them(tmp_path, toy, config):
    data, shared = replace(toy.training_set(16), values={"itm": "cells of today"}), tmp_path / "shared"
    own = np.zeros((40, len(VOCABULARY)), np.float32)
    np.save(tmp_path / "itm.npy", own)
    labels = soft_labels(tmp_path, data, train_images(tmp_path, toy, config), config, shared=shared)
    assert labels is not None
    assert np.array_equal(labels.values, own)
    assert not shared.exists()


def test_soft_labels_leave_no_interaction_out_and_annotations_teach_it(tmp_path, toy, config):
    """What the method does not ask for has no soft label, so no term of the loss pulls its logits."""
    asked = PairClassifierMethod().needs(config, VOCABULARY).train["itm"]
    data = toy.training_set(16)
    data = replace(data, prompts=[prompt if prompt in asked else None for prompt in data.prompts])
    soft = soft_labels(tmp_path, data, train_images(tmp_path, toy, config), config)(np.arange(16, 40))
    assert np.isnan(soft).all(0).tolist() == [False, False, True, False, False, True]
    assert not np.isnan(soft[:, VOCABULARY.actions()]).any()
    train(config, data, tmp_path / "run", Extras(report=quiet))
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite([last["loss/pairs"], last["loss/itm"]]).all()


def train_images(folder: Path, toy: Toy, config: PairClassifierConfig):
    return image_table(folder / "pictures", toy.training_set(16).source, config, toy.training_set(16))


def test_a_tiny_set_is_learnt_and_predicted(tmp_path, toy, config):
    """Labels of 16 images and soft labels of 24 more: the best triplet of nearly every image is the true one."""
    thorough = replace(config, steps=80, learning_rate=3e-3, dropout=0.0, feature_dropout=0.0)
    train(thorough, toy.training_set(16), tmp_path, Extras(report=quiet)).predict(
        toy.test_set(), tmp_path, report=quiet
    )
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss/pairs"] < 0.5 * records[0]["loss/pairs"]
    table = pq.read_table(tmp_path / "detections.parquet")
    assert table.schema.equals(SCHEMA)
    best = table.sort_by([("score", "descending")])
    seen, right = set(), 0
    for row in best.to_pylist():
        if row["image_id"] not in seen:
            seen.add(row["image_id"])
            right += row["hoi"] == toy.hoi[int(row["image_id"].split()[1])]
            assert VOCABULARY.hois[row["hoi"]].tolist() == [row["verb"], row["object"]]
    assert len(seen) == 40
    assert right >= 38


def test_images_without_pairs_or_positives_give_finite_results(toy, config):
    box = [[5.0, 5, 30, 60]]
    size = {"width": 64, "height": 64}
    nobody = image_of({"boxes": box, "scores": [0.9], "labels": [1], **size}, config)
    alone = image_of({"boxes": box, "scores": [0.9], "labels": [0], **size}, config)
    empty = image_of({"boxes": [], "scores": [], "labels": [], **size}, config)
    model = build_model(config, toy.training_set(16), CHANNELS, None)
    valid = torch.from_numpy(valid_classes(VOCABULARY))
    regions = gather([nobody, alone, empty], torch.zeros(3, CHANNELS, SIDE, SIDE), np.array([True, False, True]))
    assert model(regions).shape == (0, len(VOCABULARY))
    assert len(candidates_of(regions, valid)) == 0
    together = gather([nobody, image_of(toy.detections[0], config)], torch.zeros(2, CHANNELS, SIDE, SIDE))
    assert torch.isfinite(model(together)).all()


def test_batches_are_exact_epochs_and_a_function_of_the_step(tmp_path, toy, config):
    pool = np.arange(100, 117)
    for epoch in range(3):
        rows = np.concatenate([take(pool, step, 1, 5) for step in range(17 * epoch, 17 * (epoch + 1))])
        assert sorted(rows) == pool.tolist()
    one, five = (np.concatenate([take(pool, step, size, 5) for step in range(85 // size)]) for size in (1, 5))
    assert one.tolist() == five.tolist()

    data, images = toy.training_set(16), train_images(tmp_path, toy, config)
    maps = TableMaps({view: data.source.open({"features": (view,)}) for view in config.views})
    soft = soft_labels(tmp_path, data, images, config)
    pools = Pools.of(images, data.labelled, unlabelled=True)
    supervision = Supervision(terms_of(config, data, soft), torch.from_numpy(data.valid()))
    whole = PairBatches(config, pools, images, maps, supervision)
    parts = [PairBatches(config, pools, images, maps, supervision, share=Share(rank, 2)) for rank in range(2)]
    assert sorted(whole.rows(3)) == sorted(np.concatenate([part.rows(3) for part in parts]))
    again = whole[3]
    assert torch.equal(again.regions.maps, whole[3].regions.maps)
    counted = again.candidates.image[again.targets["annotations"].counted]
    assert counted.unique().tolist() == list(range(6)), "the labelled ones of 14"


def test_a_mirrored_view_comes_with_mirrored_boxes(tmp_path, toy, config):
    data, images = toy.training_set(16), train_images(tmp_path, toy, config)
    both = replace(config, views=("original", "flip"))
    maps = TableMaps({view: data.source.open({"features": (view,)}) for view in both.views})
    pools = Pools.of(images, data.labelled, unlabelled=False)
    batches = PairBatches(
        both, pools, images, maps, Supervision(terms_of(both, data, None), torch.from_numpy(data.valid()))
    )
    batch = batches[0]
    place = batches.drawn(0, len(batch.rows))[0].tolist().index(1)
    row, boxes = int(batch.rows[place]), batch.regions.boxes[batch.regions.image == place]
    assert torch.equal(batch.regions.maps[place], torch.from_numpy(toy.maps[row][..., ::-1].copy()))
    x1, _, x2, _ = images[row].boxes[0]
    torch.testing.assert_close(boxes[0, 0::2], torch.tensor([64 - x2, 64 - x1]))


def test_a_checkpoint_loads_what_was_saved(tmp_path, toy, config):
    text = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    saved = train(config, toy.training_set(16), tmp_path, Extras(None, text, {"encoder": "x"}, report=quiet))
    loaded = load_student(tmp_path / "checkpoint", VOCABULARY)
    assert (loaded.config, loaded.identities) == (config, {"encoder": "x"})
    for name, value in saved.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name])


def test_a_checkpoint_of_another_vocabulary_method_or_version_is_refused(tmp_path, toy, config):
    train(replace(config, steps=1), toy.training_set(16), tmp_path, Extras(report=quiet))
    folder = tmp_path / "checkpoint"
    other = Vocabulary.from_actions([("dog", "walk", "walking")], "another")
    with pytest.raises(UserError) as refusal:
        load_student(folder, other)
    assert other.digest() in str(refusal.value)
    assert VOCABULARY.digest() in str(refusal.value)
    record = json.loads((folder / "config.json").read_text())
    for key, value, known in (("method", "clip-hoi", "pair_classifier, vlm_hoi"), ("version", 99, "1")):
        (folder / "config.json").write_text(json.dumps({**record, key: value}))
        with pytest.raises(UserError, match=f"{key} is {value!r}, this program reads .*{known}"):
            load_student(folder)
    (folder / "config.json").write_text(json.dumps({**record, "shape": {**record["shape"], "width": 48}}))
    with pytest.raises(UserError, match=r"model\.safetensors: not the tensors"):
        load_student(folder)
    with pytest.raises(UserError, match=r"no config\.json"):
        load_student(tmp_path)


def test_the_cache_trains_the_student_that_memory_trains(tmp_path, toy, config, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    config = replace(config, steps=3)
    cached = toy.training_set(16, CacheSource(cached_tables(tmp_path / "cache", toy)))
    train(config, cached, tmp_path / "cached", Extras(report=quiet))
    train(config, toy.training_set(16), tmp_path / "memory", Extras(report=quiet))
    assert weights(tmp_path / "cached") == weights(tmp_path / "memory")


def cached_tables(root: Path, toy: Toy) -> StreamSpec:
    lists = {
        "boxes": pa.list_(pa.list_(pa.float32(), 4)),
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int16()),
    }
    found = pa.struct([*lists.items(), ("width", pa.int32()), ("height", pa.int32())])
    kinds = {"detections": found, "features": None, "itm": pa.list_(pa.float16(), 2)}
    rows = as_rows([digest_bytes(b"%d" % row) for row in range(40)])
    refs = {}
    for name, kind in kinds.items():
        shape = {"format": "lmdb", "shape": [CHANNELS, SIDE, SIDE], "codec": "fp16"}
        output = shape if kind is None else {"format": "arrow", "type": str(kind)}
        table = Cache.open(root).table(name, {"stage": name}, output, kind)
        columns = tuple(toy.tables[name])
        values = {
            column: np.stack(cells) if kind is None else pa.array([as_plain(cell) for cell in cells], kind)
            for column, cells in toy.tables[name].items()
        }
        table.commit(CellBlock(rows, columns, np.ones((40, len(columns)), bool)), values)
        refs[name] = TableRef(str(table.dir), table.fingerprint, CellSelection(rows, columns))
    return StreamSpec(rows, refs, "make teacher-cache")


def as_plain(cell):
    if isinstance(cell, dict):
        return {name: np.asarray(value).tolist() for name, value in cell.items()}
    return list(cell)


def test_a_student_can_bring_its_own_encoder_which_variants_share(tmp_path, toy, config):
    """Images are the maps of the toy world painted as colours; only their detections teach the CNN."""

    def read(row: int) -> np.ndarray:
        reads.append(row)
        colours = np.clip(toy.maps[row][:3] * 40 + 100, 0, 255).astype(np.uint8).transpose(1, 2, 0)
        return np.kron(colours, np.ones((16, 16, 1), np.uint8))

    reads: list[int] = []
    cnn = RegionCNNConfig(size=64, channels=(8, 8, 8, 8), steps=3, pictures_per_step=4)
    own = replace(config, encoder="region_cnn", steps=2)
    data = toy.training_set(16)
    data = replace(data, read=read, source=replace(data.source, rows_digest="toy"))
    first = train(own, data, tmp_path / "a", Extras(report=quiet), cnn=cnn)
    trained_on = len(reads)
    train(replace(own, itm_on="none"), data, tmp_path / "b", Extras(report=quiet), cnn=cnn)
    assert len(reads) == trained_on
    loaded = load_student(tmp_path / "a" / "checkpoint")
    assert loaded.region_cnn is not None
    assert torch.equal(loaded.region_cnn.maps([read(0)]), first.region_cnn.maps([read(0)]))
    stored = first_maps(data, config, loaded, tmp_path)
    live = LiveMaps(loaded.region_cnn, ("original",), read)(np.arange(3), np.zeros(3, np.int64))[1]
    torch.testing.assert_close(live, stored, rtol=1e-2, atol=1e-2)


def first_maps(data, config: PairClassifierConfig, student: Student, shared: Path) -> torch.Tensor:
    images = image_table(shared / "pictures", data.source, config)
    maps = map_reader(data.source, images, ("original",), cnn=student.region_cnn, shared=shared, read=data.read)
    assert isinstance(maps, StoredMaps)
    return maps(np.arange(3), np.zeros(3, np.int64))[1]
