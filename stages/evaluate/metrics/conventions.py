"""How published evaluators of HICO-DET differ: every convention a row of named switches over one algorithm.

The switches' values are explained in :data:`SWITCHES`, the rows in :data:`CONVENTIONS`. What published code leaves open
is defined here: among equal scores detections rank by image and then as stored (``ties=first``), also where the code
sorts with numpy's default, unstable sort.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from hoi_distill.storage.errors import UserError, did_you_mean

SWITCHES: dict[str, dict[str, str]] = {
    "recall_grid": {
        "official": "eleven levels k * 0.1 in floating point, as Octave and numpy.arange build them",
        "linspace": "eleven levels as torch.linspace and MATLAB build them: only the fourth is above k / 10",
        "exact": "eleven levels k / 10",
        "all": "every recall: the area under the interpolated curve",
    },
    "box_area": {
        "half_open": "x2 - x1 of half-open boxes, the same as x2 - x1 + 1 of inclusive ones",
        "plain": "x2 - x1 of inclusive boxes: every side a pixel short",
    },
    "detection_boxes": {
        "as_given": "detected boxes are compared as they are",
        "rounded": "corners of detected boxes are rounded to whole pixels first",
    },
    "one_pixel_overlap": {
        "counts": "an intersection one pixel wide or high is one",
        "none": "an intersection not more than one pixel wide or high is empty",
    },
    "threshold": {
        "at_least": "a match needs an overlap >= 0.5",
        "above": "a match needs an overlap > 0.5",
    },
    "assignment": {
        "best": "a detection is compared with the pair that it overlaps most, taken or not",
        "first_unused": "a detection takes the first stored pair that it overlaps enough and that is not taken",
    },
    "pictures": {
        "all": "every image of the split",
        "with_pairs": "detections in images without an annotated pair are left out (112 of HICO-DET's 9,658)",
    },
    "known_object": {
        "image_level": "images whose image-level labels name the object",
        "box_level": "images in which a pair with the object is annotated",
    },
    "classes": {
        "all": "means are over every class",
        "without_no_interaction": "means leave out the no_interaction classes (520 of HICO-DET's 600 remain)",
    },
    "ties": {
        "first": "equal scores rank by image, then as stored",
        "last_stored": "equal scores rank by image, then last stored first, as pairwise suppression leaves them",
        "last": "equal scores rank by falling image, last stored first, as numpy.argsort(scores)[::-1] has them",
    },
}
"""The values of every switch that has named ones."""

NUMBERS: dict[str, str] = {
    "top_per_image": "detections of an image that are evaluated, the highest-scored of all classes; none: all",
    "top_per_class": "detections of a class that are evaluated, the highest-scored; none: all",
    "nms_threshold": "pairwise suppression of lower-scored detections of an image and class whose overlap, IoU of "
    "humans ** nms_human * IoU of objects ** nms_object, is above this; none: no suppression",
    "nms_human": "exponent of the IoU of humans in pairwise suppression",
    "nms_object": "exponent of the IoU of objects in pairwise suppression",
    "truth_shift": "pixels added to the annotated boxes: 1 is what mixed-up zero- and one-based boxes give",
}
"""The switches that are numbers."""


@dataclass(frozen=True)
class Convention:
    """One evaluator's settings; fields are explained in :data:`SWITCHES` and :data:`NUMBERS`, defaults are official.

    name, description, source: for people; the repository (or paper) whose code is followed.
    """

    name: str
    description: str
    source: str
    recall_grid: str = "official"
    box_area: str = "half_open"
    detection_boxes: str = "as_given"
    one_pixel_overlap: str = "counts"
    threshold: str = "at_least"
    assignment: str = "best"
    pictures: str = "all"
    known_object: str = "image_level"
    classes: str = "all"
    ties: str = "first"
    top_per_image: int | None = None
    top_per_class: int | None = None
    nms_threshold: float | None = None
    nms_human: float = 1.0
    nms_object: float = 0.5
    truth_shift: float = 0.0

    def switches(self) -> dict[str, str | float | None]:
        """Name and value of every switch."""
        return {field.name: getattr(self, field.name) for field in fields(self)[3:]}

    def averaged(self, verbs: Sequence[str], no_interaction: str = "no_interaction") -> np.ndarray:
        """``bool [H]``: which classes enter the means. ``verbs`` names the verb of each class."""
        is_none = np.array([verb == no_interaction for verb in verbs], bool)
        return ~is_none if self.classes == "without_no_interaction" else np.ones(len(is_none), bool)


OFFICIAL = Convention(
    "official", "the official Matlab code, run under Octave: best match, min IoU >= 0.5, 11 points", "ywchao/ho-rcnn"
)

_PPDM = replace(
    OFFICIAL, name="ppdm", description="PPDM on 9,658 images", source="YueLiao/PPDM", one_pixel_overlap="none"
)
_QPIC = replace(
    _PPDM, name="qpic", description="QPIC: top 100 an image, images without pairs skipped",
    source="hitachi-rd-cv/qpic", pictures="with_pairs", top_per_image=100,
)  # fmt: skip
_GENVLKT = replace(
    _QPIC, name="genvlkt", description="GEN-VLKT: top 100 an image", source="YueLiao/gen-vlkt", pictures="all"
)
_GGNET = replace(
    OFFICIAL, name="ggnet", description="GGNet: the first free pair with both IoU > 0.5",
    source="SherlockHolmes221/GGNet", assignment="first_unused", threshold="above", one_pixel_overlap="none",
    known_object="box_level",
)  # fmt: skip
_THID = replace(
    OFFICIAL, name="thid-half-open", description="THID with half-open boxes: exact grid, top 19,999 a class",
    source="scwangdyd/promting_hoi", recall_grid="exact", top_per_class=19_999, ties="last",
)  # fmt: skip
_POCKET = replace(
    OFFICIAL, name="pocket", description="pocket's 11P: IoU > 0.5, linspace grid, images without pairs skipped",
    source="fredzzhang/pocket", recall_grid="linspace", threshold="above", pictures="with_pairs",
)  # fmt: skip

CONVENTIONS: dict[str, Convention] = {
    row.name: row
    for row in (
        OFFICIAL,
        replace(
            OFFICIAL, name="official-matlab", description="the official code under MATLAB, whose 0:0.1:1 differs",
            recall_grid="linspace",
        ),
        _PPDM,
        replace(_PPDM, name="ppdm-9546", description="PPDM on the 9,546 images with pairs", pictures="with_pairs"),
        _QPIC,
        replace(_QPIC, name="cdn", description="CDN without suppression: as QPIC", source="YueLiao/CDN"),
        replace(
            _QPIC, name="cdn-nms", description="CDN with its pairwise suppression (0.7, 1, 0.5)", source="YueLiao/CDN",
            nms_threshold=0.7, ties="last_stored",
        ),
        _GENVLKT,
        replace(
            _GENVLKT, name="genvlkt-nms", description="GEN-VLKT with its pairwise suppression (0.7, 1, 0.5)",
            nms_threshold=0.7, ties="last_stored",
        ),
        replace(
            OFFICIAL, name="ppdm-matlab", description="PPDM's and GEN-VLKT's export to the official code: rounded, top "
            "19,999 a class", source="YueLiao/PPDM", detection_boxes="rounded", top_per_class=19_999,
            ties="last_stored",
        ),
        _GGNET,
        replace(_GGNET, name="no_frills", description="No-Frills: as GGNet", source="BigRedT/no_frills_hoi_det"),
        replace(_THID, name="thid", description="THID as published: areas of inclusive boxes", box_area="plain"),
        _THID,
        _POCKET,
        replace(_POCKET, name="upt", description="UPT: pocket's 11P", source="fredzzhang/upt"),
        replace(_POCKET, name="pvic", description="PViC: pocket's 11P", source="fredzzhang/pvic"),
    )
}  # fmt: skip
"""Every convention by name."""


def convention(name: str, switches: Sequence[str] = ()) -> Convention:
    """A convention by name, with single switches set otherwise.

    Args:
        name: a key of :data:`CONVENTIONS`; upper case, ``-`` and ``_`` make no difference.
        switches: ``"key=value"`` each, such as ``"recall_grid=linspace"`` or ``"top_per_image=50"``.

    Raises:
        UserError: an unknown name, switch or value; the line says what is allowed.
    """
    by_name = {_plain(key): row for key, row in CONVENTIONS.items()}
    if _plain(name) not in by_name:
        raise UserError(
            f"--convention {name}: there is no such convention{did_you_mean(name, CONVENTIONS)}; known are "
            f"{', '.join(CONVENTIONS)}"
        )
    row = by_name[_plain(name)]
    changed = [_switch(text) for text in switches]
    return replace(row, name="+".join([row.name, *switches]), **dict(changed)) if changed else row  # type: ignore[arg-type]


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _switch(text: str) -> tuple[str, str | float | None]:
    """The field and value that ``key=value`` sets."""
    key, equals, value = (part.strip() for part in text.partition("="))
    known = [*SWITCHES, *NUMBERS]
    if key not in known:
        raise UserError(
            f"switch {text!r}: there is no switch {key!r}{did_you_mean(key, known)}; write key=value, where key is "
            f"{', '.join(known)}"
        )
    if not equals:
        values = ", ".join(SWITCHES[key]) if key in SWITCHES else f"number: {NUMBERS[key]}"
        raise UserError(f"switch {text!r}: =VALUE is missing; write {key}=VALUE, where VALUE is {values}")
    if key in SWITCHES:
        if value not in SWITCHES[key]:
            raise UserError(
                f"switch {text!r}: {key} is {' or '.join(SWITCHES[key])}{did_you_mean(value, SWITCHES[key])}"
            )
        return key, value
    whole = key.startswith("top_")
    may_be_none = whole or key == "nms_threshold"
    if may_be_none and value.lower() == "none":
        return key, None
    try:
        number = int(value) if whole else float(value)
    except ValueError:
        number = math.nan
    lowest = 1 if whole else -math.inf if key == "truth_shift" else 0
    if not (math.isfinite(number) and number >= lowest):
        kind = "a whole number from 1 up" if whole else "a number" if key == "truth_shift" else "a number from 0 up"
        raise UserError(f"switch {text!r}: {key} is {kind}{' or none' if may_be_none else ''}")
    return key, number
