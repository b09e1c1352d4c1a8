"""What every reader of another program's annotations gives: images with pairs, and where each stands in the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hoi_distill.stages.data.reading.json_columns import is_number
from hoi_distill.storage.errors import UserError

Box = tuple[float, float, float, float]
"""xyxy, pixels of the upright image, zero-based half-open."""


@dataclass(frozen=True)
class ListedPair:
    """One person and one object, with what the person does.

    Attributes:
        where: The file and the place in it, for errors.
        human_box: The person's box.
        object_box: The object's box.
        object: The object's name, as the file has it.
        verbs: The verbs, as the file has them.
    """

    where: str
    human_box: Box
    object_box: Box
    object: str
    verbs: tuple[str, ...]


@dataclass(frozen=True)
class ListedImage:
    """One annotated image.

    Attributes:
        where: The file and the place in it, for errors.
        names: What the image may be called in its folder, the likeliest first.
        pairs: Its pairs; none where nobody in it does anything.
        split: "train" or "test"; None where the file does not say.
    """

    where: str
    names: tuple[str, ...]
    pairs: tuple[ListedPair, ...]
    split: str | None = None


def box_of(values: Sequence[Any], where: str, what: str) -> Box:
    """Four numbers as a box.

    Args:
        values: x1, y1, x2, y2.
        where: The file and the place in it.
        what: What the box is, as in "the person's box".

    Raises:
        UserError: If they are not four finite numbers, or the box is empty.
    """
    given = list(values) if isinstance(values, list | tuple) else []
    if len(given) != 4 or not all(is_number(value) and abs(value) < 1e9 for value in given):
        raise UserError(f"{where}: {what} is {values!r}; four numbers in pixels are wanted")
    x1, y1, x2, y2 = (float(value) for value in given)
    if x1 >= x2 or y1 >= y2:
        raise UserError(
            f"{where}: {what} {x1:g}, {y1:g}, {x2:g}, {y2:g} is empty; the corners are left, top, right, bottom"
        )
    return x1, y1, x2, y2


def split_of(value: Any, where: str) -> str | None:
    """A split's name, None where nothing is said.

    Raises:
        UserError: It is neither train nor test.
    """
    if value in (None, ""):
        return None
    if value not in ("train", "test"):
        raise UserError(f"{where}: split {value!r}; there are train and test")
    return str(value)
