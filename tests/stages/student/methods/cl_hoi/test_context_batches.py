"""What stage 1 reads: texts, and batches that are pure functions of the step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hoi_distill.stages.student.methods.cl_hoi.context_batches import ContextBatches, Texts
from hoi_distill.stages.student.pairs.batches import TableMaps
from hoi_distill.stages.student.pairs.supervision.image_labels import (
    teacher_labels,
)
from hoi_distill.stages.student.source import Sample, Samples
from hoi_distill.storage.sampling import epoch_order
from tests.fixtures.toy_cl_hoi import CONFIG


def maps_of(data):
    return TableMaps({view: data.source.open({"features": (view,)}) for view in CONFIG.views})


def test_texts_come_back_by_row(world, tmp_path):
    texts = Texts.open_or_build(tmp_path / "texts", world.teacher_set())
    sentences, text = texts.of(np.array([5, 0, 1]))
    cells = world.tables["context"]["value"]
    np.testing.assert_array_equal(sentences, np.concatenate([cells[5], cells[0], cells[1]]).astype(np.float32))
    assert text.tolist() == [0] * len(cells[5]) + [2] * len(cells[1])
    assert not texts.present()[0]
    assert texts.present()[1:].all()


def test_context_batches_are_pure_functions_of_the_step_and_queue_what_came_before(world, tmp_path):
    data = world.teacher_set()
    labels = teacher_labels(tmp_path / "l", data)
    texts, pool = Texts.open_or_build(tmp_path / "texts", data), np.arange(1, len(world.hoi))

    def batches():
        return ContextBatches(CONFIG.first_stage(), pool, maps_of(data), texts=texts, labels=labels, queue=8)

    first, again = batches(), batches()
    seen = [first[step] for step in range(4)]
    batch = again[3]  # without the steps before
    for name in ("rows", "sentences", "text", "same"):
        assert torch.equal(getattr(batch, name), getattr(seen[3], name))
    texts_of_step = [int(one.text.max()) + 1 for one in seen]
    assert texts_of_step[0] == 6  # nothing came before
    assert texts_of_step[1] == 12
    assert texts_of_step[3] == 14  # the queue is full
    assert batch.same.shape == (6, 14)


def test_a_window_orders_the_images_of_a_step_and_those_of_the_steps_before(world, tmp_path):
    data = world.teacher_set()
    labels = teacher_labels(tmp_path / "l", data)
    texts, pool = Texts.open_or_build(tmp_path / "texts", data), np.arange(1, len(world.hoi))
    config = replace(CONFIG, shuffle_window=8).first_stage()
    batches = ContextBatches(config, pool, maps_of(data), texts=texts, labels=labels, queue=config.unlabelled_per_step)
    one, two = batches.rows(0), batches.rows(1)
    assert one.tolist() == pool[epoch_order(1, 0, len(pool), window=8)[: len(one)]].tolist()
    assert set(batches.earlier(1, two).tolist()) == set(one.tolist()) - set(two.tolist())


class Away:
    """Samples that come from an object store."""

    fetches = True

    def __init__(self, samples: Samples) -> None:
        self.samples, self.asked = samples, []

    def __getitems__(self, rows: list[int]) -> list[Sample]:
        return self.samples.__getitems__(rows)

    def fetch_ahead(self, rows: list[int]) -> None:
        self.asked.append(rows)


def test_the_maps_of_later_steps_are_fetched_ahead(world, tmp_path):
    data = world.teacher_set()
    labels = teacher_labels(tmp_path / "l", data)
    texts, pool = Texts.open_or_build(tmp_path / "texts", data), np.arange(1, len(world.hoi))
    away = {view: Away(samples) for view, samples in maps_of(data).views.items()}
    config = CONFIG.first_stage()
    batches = ContextBatches(config, pool, TableMaps(away), texts=texts, labels=labels, queue=8)
    assert len(batches[1].rows) == len(batches.rows(1))
    later = [row for step in range(2, min(18, config.steps)) for row in batches.rows(step).tolist()]
    assert [samples.asked for samples in away.values()] == [[later]] * len(away)


def test_images_that_show_the_same_are_no_negatives(world, tmp_path):
    data = world.teacher_set()
    labels = teacher_labels(tmp_path / "l", data)
    texts, pool = Texts.open_or_build(tmp_path / "texts", data), np.arange(1, len(world.hoi))
    batch = ContextBatches(CONFIG.first_stage(), pool, maps_of(data), texts=texts, labels=labels, queue=0)[0]
    hoi = torch.from_numpy(world.hoi)[batch.rows]
    assert torch.equal(batch.same, hoi[:, None] == hoi)
