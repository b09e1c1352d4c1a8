"""In a drawn prediction a person and a thing are told apart by their lines, without colours."""

from __future__ import annotations

import numpy as np
from hoi_distill.stages.evaluate.pages.pictures import PALETTE, Pair
from PIL import Image

from hoi_distill.stages.evaluate.pages.drawing import LONGEST, ROW, drawn

WHITE = Image.new("RGB", (480, 240), "white")


def share(image: Image.Image, line: slice, row: int, colour: str) -> float:
    """How much of a horizontal line a colour covers."""
    wanted = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return float((np.asarray(image)[row, line] == wanted).all(-1).mean())


def test_a_humans_box_is_solid_and_an_objects_dashed():
    made = drawn(WHITE, [Pair((60, 60, 160, 180), (220, 60, 400, 180), "hold", "cup", 0.9)])
    assert made.size == (LONGEST, 480 + 2 * ROW + 8)
    human, thing = slice(160, 310), slice(445, 795)
    assert share(made, human, 359, PALETTE[0]) == 1  # the lower edge
    assert 0.4 < share(made, thing, 360, PALETTE[0]) < 0.8
    legend = np.asarray(made.convert("L"))[480:506]
    assert (legend < 100).any(0).sum() > 100


def test_a_pair_without_an_object_has_one_solid_box():
    made = drawn(WHITE, [Pair((60, 60, 160, 180), (60, 60, 160, 180), "stand", "", 0.9)])
    assert share(made, slice(160, 310), 359, PALETTE[0]) == 1


def test_a_image_in_which_nothing_was_found_says_so():
    made = np.asarray(drawn(WHITE, []).convert("L"))
    assert (made[480:] < 100).any()
    assert (made[:480] == 255).all()
