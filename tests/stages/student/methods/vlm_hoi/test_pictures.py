"""What a step shows the network: views that depend on (seed, epoch, row) alone, boxes that follow them, merged pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hoi_distill.stages.student.methods.vlm_hoi.augment import View, resized, training_view
from hoi_distill.stages.student.methods.vlm_hoi.augment import test_view as view_at_test
from hoi_distill.stages.student.methods.vlm_hoi.config import TransformConfig
from hoi_distill.stages.student.methods.vlm_hoi.picture_set import in_frame, pairs_of, take, targets_of
from tests.fixtures.toy_student import VOCABULARY


def test_a_view_is_a_function_of_seed_epoch_and_row():
    views = {(seed, epoch, row): training_view(TransformConfig(), 640, 480, seed=seed, epoch=epoch, row=row)
             for seed in range(2) for epoch in range(3) for row in range(4)}  # fmt: skip
    again = training_view(TransformConfig(), 640, 480, seed=1, epoch=2, row=3)
    assert again == views[1, 2, 3]
    assert len({str(view) for view in views.values()}) == len(views)


def test_published_sizes():
    assert resized(640, 480, 800, 1333) == (1067, 800)
    assert resized(2000, 500, 800, 1333) == (1333, 333)
    for row in range(200):
        view = training_view(TransformConfig(), 640, 480, seed=0, epoch=0, row=row)
        x1, y1, x2, y2 = view.window
        assert 0 <= x1 < x2 <= 640 + 1e-6
        assert 0 <= y1 < y2 <= 480 + 1e-6
        assert max(view.size) <= 1333
        assert min(view.size) in TransformConfig().short_sides or max(view.size) == 1333
    windows = [training_view(TransformConfig(), 640, 480, seed=0, epoch=0, row=row).window for row in range(200)]
    cropped = [window != (0, 0, 640, 480) for window in windows]
    assert 70 < sum(cropped) < 130


def test_boxes_follow_the_picture():
    """A white rectangle on black is found where its box is said to be, in every view that shows it."""
    picture = np.zeros((240, 320, 3), np.uint8)
    picture[80:160, 120:200] = 255
    config = TransformConfig(
        short_sides=(200, 300), max_side=600, crop_short_sides=(150, 200), crop_sides=(90, 160), jitter=0.0
    )
    box = np.array([[120, 80, 200, 160]], np.float32)
    shown = 0
    for row in range(40):
        view = training_view(config, 320, 240, seed=0, epoch=0, row=row)
        seen, (x1, y1, x2, y2) = view.of_picture(picture), view.of_boxes(box)[0]
        assert seen.shape == (view.size[1], view.size[0], 3)
        bright = seen[..., 0] > 127
        if not bright.any():
            continue
        shown += 1
        ys, xs = np.nonzero(bright)
        found = [
            xs.min() / view.size[0],
            ys.min() / view.size[1],
            (xs.max() + 1) / view.size[0],
            (ys.max() + 1) / view.size[1],
        ]
        np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=0.02)
    assert shown > 20


def test_only_pairs_that_survive_a_crop_are_targets(world):
    pairs = pairs_of(world.training_set(), 0)
    missing = len(VOCABULARY.objects)
    whole = targets_of(pairs, view_at_test(TransformConfig(test_short_side=64), int(world.width[0]), 64), missing)
    assert len(whole) == 1
    x2 = float(world.person[0, 2])
    left = View((96, 64), (0, 0, x2, 64), (64, 64))  # shows the person alone
    assert len(targets_of(pairs, left, missing)) == 0
    alone = replace(pairs, objects=np.array([-1]), object_=np.zeros((1, 4), np.float32))
    there = targets_of(alone, left, missing)
    assert (there.objects.tolist(), there.object_boxes.tolist()) == ([missing], [[0, 0, 0, 0]])


def test_verbs_of_one_pair_are_one_target(world):
    data = world.training_set()
    box = np.array([[0, 0, 20, 20]], np.float32)
    human = np.concatenate([box, box, box + 1, box, box + 40])
    thing = np.concatenate([box + 30, box + 30, box + 31, box + 30, box + 30])
    dog, bicycle = (VOCABULARY.objects.index(name) for name in ("dog", "bicycle"))
    one = replace(
        data.annotations, pair_offsets=np.array([0, 5, *[5] * 23]), human_box=human, object_box=thing,
        object=np.array([dog, dog, dog, bicycle, dog]), verb=np.array([0, 3, 1, 0, 0]), hoi=np.zeros(5, np.int16),
    )  # fmt: skip
    data = replace(data, annotations=one)
    exact = pairs_of(data, 0)
    assert exact.verbs.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    merged = pairs_of(data, 0, merge_iou=0.5)  # the third is the first, a pixel off
    assert merged.verbs.tolist() == [[1, 1, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert merged.objects.tolist() == [dog, bicycle, dog]


def test_padding_is_zero_and_masked():
    config = TransformConfig()
    pixels, mask = in_frame([np.full((4, 6, 3), 255, np.uint8), np.zeros((5, 3, 3), np.uint8)], 8, 5, config)
    assert pixels.shape == (2, 3, 5, 8)
    assert mask.sum((1, 2)).tolist() == [24, 15]
    assert (pixels[~mask[:, None].expand_as(pixels)] == 0).all()
    torch.testing.assert_close(pixels[0, :, 0, 0], (1 - torch.tensor(config.mean)) / torch.tensor(config.std))


@pytest.mark.parametrize("size", [1, 5, 17, 40])
def test_epochs_are_exact(size):
    pool = np.arange(100, 117)
    drawn = [pair for step in range(-(-51 // size)) for pair in take(pool, step, size, 3)][:51]
    for epoch in range(3):
        assert sorted(row for row, of in drawn if of == epoch) == pool.tolist()
