"""What is said of an image of the crowd: what is there, who does what, and what one could guess it from.

Three kinds of texts, none of which reads a box:

* *plain*: things, shirts, counts and postures, and no verb: what a tower may know that knows no interaction.
* *grounding*: each act with words that pick one person and one of several equal things ("the person in red is pointing at
  the left one of two dogs"), where such words exist.
* *context*: a sentence for each act that names the object and tells why, but not what is done ("the dog is getting wet").
"""

from __future__ import annotations

import colorsys
from collections import Counter

from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.data.crowd.classes import PARTICIPLES
from hoi_distill.stages.data.crowd.render import CrowdScene, Relation
from hoi_distill.stages.data.pico.sketch import Color

CONTEXTS: dict[str, str] = {
    "point_at": "somebody shows the others which {} is meant",
    "pull": "the {} will not come along by itself",
    "reach_for": "somebody wants to have the {}",
    "spray": "the {} is getting wet",
    "step_on": "the {} must not roll away or be taken",
    "watch": "the {} is too far away to be made out with bare eyes",
}
"""What tells the verb without naming it; the object's name goes in."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_HUES = ((0.04, "red"), (0.115, "orange"), (0.19, "yellow"), (0.45, "green"), (0.7, "blue"), (0.82, "purple"),
         (0.95, "pink"), (1.01, "red"))  # fmt: skip
COLORS: tuple[str, ...] = tuple(dict.fromkeys(name for _, name in _HUES))
"""Every name that a shirt's colour may have."""


def color_name(color: Color) -> str:
    """The name of a vivid colour's hue."""
    hue = colorsys.rgb_to_hsv(*(part / 255 for part in color))[0]
    return next(name for end, name in _HUES if hue < end)


def plain(scene: CrowdScene) -> str:
    """What is there: "five people, two of them walking; three dogs and two cups; shirts: red, blue ..."."""
    postures = Counter(scene.postures)
    people = [_count(len(scene.postures), "person")]
    people += [f"{_NUMBERS[count]} of them {posture}" for posture, count in sorted(postures.items())]
    things = Counter(COCO_OBJECTS[label] for label in scene.objects.tolist() if label)
    counted = " and ".join(_count(count, name) for name, count in sorted(things.items()))
    shirts = ", ".join(sorted({color_name(shirt) for shirt in scene.shirts}))
    return f"{', '.join(people)}; {counted}; shirts: {shirts}"


def grounding(scene: CrowdScene, relation: Relation) -> str:
    """One act in words that pick its person and its object; less is said where no words would pick them."""
    doing = PARTICIPLES[relation.verb].replace("_", " ")
    what = _picked(scene, relation.object)
    return f"{_person(scene, relation.human)} is {doing} {what}"


def context(relation: Relation) -> str:
    """A sentence that tells the verb of one act to whoever thinks, without naming it."""
    return CONTEXTS[relation.verb].format("other person" if relation.name == "person" else _words(relation.name))


def _person(scene: CrowdScene, row: int) -> str:
    names = [color_name(shirt) for shirt in scene.shirts]
    return f"the person in {names[row]}" if names.count(names[row]) == 1 else "a person"


def _picked(scene: CrowdScene, row: int) -> str:
    """An object among its equals: by its shirt where it is a person, else by its place from left to right."""
    label = int(scene.objects[row])
    if label == 0:
        return _person(scene, row).replace("a person", "another person")
    name = COCO_OBJECTS[label]
    middles = (scene.boxes[:, 0] + scene.boxes[:, 2]).tolist()
    equals = sorted((k for k, other in enumerate(scene.objects.tolist()) if other == label), key=middles.__getitem__)
    if len(equals) == 1:
        return f"the {_words(name)}"
    place = equals.index(row)
    ends = {0: "left", len(equals) - 1: "right"} | ({1: "middle"} if len(equals) == 3 else {})
    of = _count(len(equals), name)
    return f"the {ends[place]} one of {of}" if place in ends else f"one of {of}"


def _count(number: int, name: str) -> str:
    """ "two cups", "five people"."""
    words = _words(name)
    plural = "people" if name == "person" else f"{words}s"
    return f"{_NUMBERS[number]} {words if number == 1 else plural}"


def _words(name: str) -> str:
    return name.replace("_", " ")
