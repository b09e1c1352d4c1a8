"""Encodings of boxes and cells."""

from __future__ import annotations

import math

import pytest
import torch

from hoi_distill.stages.student.pairs.layers.box_encoding import (
    TEMPERATURE,
    box_encoding,
    grid_encoding,
    sine_encoding,
    unit_boxes,
)


def test_a_scalar_by_hand():
    assert TEMPERATURE == 20
    angles = [2 * math.pi * 0.3, 2 * math.pi * 0.3 / 20 ** (2 / 4)]
    by_hand = [math.sin(angles[0]), math.cos(angles[0]), math.sin(angles[1]), math.cos(angles[1])]
    assert sine_encoding(torch.tensor([0.3]), 4).tolist() == pytest.approx(by_hand, abs=1e-6)


def test_a_box_is_its_centre_then_its_size_rows_before_columns():
    unit = unit_boxes(torch.tensor([[20.0, 10.0, 60.0, 40.0]]), torch.tensor([[80.0, 50.0]]))
    assert unit.tolist()[0] == pytest.approx([25 / 50, 40 / 80, 30 / 50, 40 / 80])
    by_hand = [
        f(2 * math.pi * s / 20 ** (k / 4)) for s in unit.tolist()[0] for k in (0, 2) for f in (math.sin, math.cos)
    ]
    assert box_encoding(unit, 8).tolist()[0] == pytest.approx(by_hand, abs=1e-6)


def test_boxes_lie_in_the_image_and_have_a_pixel():
    boxes = torch.tensor([[-10.0, 5, 200, 5], [30, 30, 20, 20]])
    unit = unit_boxes(boxes, torch.tensor([[100.0, 50.0]]).expand(2, 2))
    assert unit.tolist()[0] == pytest.approx([0.1, 0.5, 1 / 50, 1])
    assert unit.tolist()[1][2:] == pytest.approx([1 / 50, 1 / 100])


def test_a_cell_is_encoded_as_the_centre_of_the_box_around_it():
    grid = grid_encoding(4, 8, 16).view(4, 8, 16)
    cell = torch.tensor([[5 * 10.0, 2 * 10.0, 6 * 10.0, 3 * 10.0]])
    box = box_encoding(unit_boxes(cell, torch.tensor([[80.0, 40.0]])), 16)
    torch.testing.assert_close(grid[2, 5], box[0, :16])
