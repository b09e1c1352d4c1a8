"""V-COCO (Gupta and Malik, Visual Semantic Role Labeling, 2015): verbs and roles of persons in COCO images.

An *action* is done by a person, the agent, with up to two *roles*: the object it is done to (obj) or with (instr). A
*slot* is an action with one of its roles, or an action that takes none. Slots are the verbs of our vocabulary.

Two layouts are read. The official one gives actions and roles of COCO annotations by id, and boxes come from COCO
(x, y, width, height). The authors' evaluation calls the box (x, y, x + w - 1, y + h - 1), inclusive and clipped; that
is (x, y, x + w, y + h) half-open, converted in ``v_coco_files`` and nowhere else. The other is Frederic Zhang's
``instances_vcoco_*.json`` with one entry a pair; it lacks ``point``, persons without a pair, and roles without a box.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.elsewhere import ImagesElsewhere
from hoi_distill.stages.data.image import header_size
from hoi_distill.stages.data.reading.rejects import Rejects
from hoi_distill.stages.data.v_coco.files import (
    Instances,
    PairTable,
    Verbs,
    image_paths,
    is_pair_file,
    read_instances,
    read_pairs,
    read_verbs,
    require,
    split_files,
    split_images,
)
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.storage.errors import UserError

_log = logging.getLogger(__name__)

ACTION_ROLES: dict[str, tuple[str, ...]] = {
    "hold": ("obj",), "stand": (), "sit": ("instr",), "ride": ("instr",), "walk": (), "look": ("obj",),
    "hit": ("instr", "obj"), "eat": ("obj", "instr"), "jump": ("instr",), "lay": ("instr",),
    "talk_on_phone": ("instr",), "carry": ("obj",), "throw": ("obj",), "catch": ("obj",), "cut": ("instr", "obj"),
    "run": (), "work_on_computer": ("instr",), "ski": ("instr",), "surf": ("instr",), "skateboard": ("instr",),
    "smile": (), "drink": ("instr",), "kick": ("obj",), "point": ("instr",), "read": ("obj",),
    "snowboard": ("instr",),
}  # fmt: skip
"""The 26 actions in the official order, each with its roles besides the agent."""

ACTIONS = tuple(ACTION_ROLES)
SLOTS = tuple(
    f"{action}_{role}" if role else action for action, roles in ACTION_ROLES.items() for role in roles or ("",)
)
"""The 29 slots, in the official order: the verbs of the vocabulary."""

SLOT_ACTION = np.repeat(np.arange(len(ACTIONS)), [len(roles) or 1 for roles in ACTION_ROLES.values()])
"""int [29]: the action of each slot."""

ROLE_SLOTS = np.flatnonzero([bool(ACTION_ROLES[ACTIONS[action]]) for action in SLOT_ACTION])
"""int [25]: the slots with a role, as positions among the 29."""

ROLES = tuple(SLOTS[slot] for slot in ROLE_SLOTS)
"""The 25 slots with a role."""

UNREPORTED_ROLE = ROLES.index("point_instr")
"""The one of the 25 that averages over 24 leave out: in the trainval images it has an object 21 times."""


@dataclass(frozen=True, eq=False)
class People:
    """What the official evaluation knows of N images: their M persons, sorted by image, in COCO's order within one.

    Attributes:
        image_id: str ``[N]``, decimal COCO ids.
        image: int32 ``[M]``, row of each person's image.
        box: float32 ``[M, 4]``, xyxy pixels, zero-based half-open.
        annotated: bool ``[M]``, whether V-COCO's annotators judged the person. Detections of the others are ignored.
        actions: bool ``[M, 26]``; none for a person annotated as doing nothing, who makes detections wrong.
        role_box: float32 ``[M, 25, 4]``, all zero where the role is not there.
    """

    image_id: np.ndarray
    image: np.ndarray
    box: np.ndarray
    annotated: np.ndarray
    actions: np.ndarray
    role_box: np.ndarray


@cache
def v_coco_vocabulary(combinations: str | Path = "trainval") -> Vocabulary:
    """The 29 slots as verbs, COCO's 80 objects, and (slot, object) combinations.

    Args:
        combinations: ``trainval``: those that are annotated in these images. ``all``: the 2,000 of a slot that has a role
            with an object. Else a vocabulary file with these verbs and objects.

    Raises:
        UserError: If the file has other verbs or objects.
    """
    known = Vocabulary.load(Path(__file__).parents[1] / "vocabularies" / "v_coco.json")
    if combinations == "trainval":
        return known
    if combinations == "all":
        return replace(known, hois=np.array([(s, o) for s in ROLE_SLOTS for o in range(len(known.objects))], np.int16))
    found = Vocabulary.load(combinations)
    if (found.verbs, found.objects) != (known.verbs, known.objects):
        raise UserError(
            f"{combinations}: not of V-COCO's 29 slots and COCO's 80 objects, in their order; see v_coco.json"
        )
    return found


def load_v_coco(
    root: str | Path,
    split: str | None = None,
    *,
    limit: int | None = None,
    lenient: bool = False,
    images: bool | ImagesElsewhere = True,
    combinations: str | Path = "trainval",
) -> Annotations:
    """Read one split of a folder with V-COCO, or of one of its annotation files.

    ``image_id`` is the decimal COCO id. A pair is a person and a slot; a slot without its role is a pair without object
    (object and hoi -1). A person without action gives no pairs. Zhang's file has no image sizes: they are read from
    the images, and 0 with ``images=False``.

    Args:
        root: A folder with ``vcoco_{split}.json`` and COCO's instances (``instances_vcoco_all_2014.json``, one
            ``instances_vcoco_{split}.json`` a split, or COCO's own ``instances_{train,val}2014.json``) in it or in the
            folders below where they usually are, or with Zhang's ``instances_vcoco_{split}.json``; or one of those files.
        split: train, val, trainval or test. By default what the file's name says; for a folder test, or val where the
            folder has val's files and not test's.
        limit: Read only the first so many images.
        lenient: Drop bad entries, count them and warn, instead of refusing them.
        images: Whether the image files must be there; or where they are, if not beside the annotations.
        combinations: See :func:`v_coco_vocabulary`.

    Raises:
        UserError: With the file and the entry, for files that are not there or not V-COCO's, roles and persons without a
            box, labels other than 0 and 1, missing images.
    """
    roots, split = _place(Path(root), split)
    reject = Rejects(f"V-COCO {split}:", lenient)
    pair_files = _pair_files(Path(root), roots, split)
    table = (
        read_pairs(pair_files, SLOTS, reject)
        if pair_files
        else _official_pairs(*_official(roots, split, reject), reject)
    )
    elsewhere = images if isinstance(images, ImagesElsewhere) else None
    paths = image_paths(roots, table.name, elsewhere)
    kept = np.arange(len(paths))[:limit]
    if images:
        there = np.array(
            [Path(paths[i]).is_file() if elsewhere is None else elsewhere.holds(paths[i]) for i in kept], bool
        )
        for i in kept[~there]:
            reject(f"no image {paths[i]}; COCO's train2014 and val2014 belong there")
        kept = kept[there]
    vocabulary = v_coco_vocabulary(combinations)
    hoi = np.where(table.object >= 0, vocabulary.hoi_id()[table.slot, table.object], -1).astype(np.int16)
    reject.warn()
    annotations = Annotations(
        name="v-coco",
        split=split,
        vocabulary=vocabulary,
        image_id=table.image.astype(str),
        path=paths,
        width=table.size[:, 0],
        height=table.size[:, 1],
        pair_offsets=np.searchsorted(table.pair_image, np.arange(len(paths) + 1)),
        human_box=table.human_box,
        object_box=table.object_box,
        object=table.object,
        verb=table.slot,
        hoi=hoi,
        frame="stored",
        rejected=tuple(reject.messages),
    ).take(kept)
    if images is True and pair_files:
        sizes = np.array([header_size(path, "stored") for path in annotations.path], np.int32).reshape(-1, 2)
        return replace(annotations, width=sizes[:, 0], height=sizes[:, 1])
    return annotations


def load_v_coco_people(root: str | Path, split: str | None = None, lenient: bool = False) -> People:
    """What the official evaluation needs, from the official files as :func:`load_v_coco` finds them.

    Raises:
        UserError: As it does, and for Zhang's file, which lacks persons who do nothing or do something to nothing.
    """
    roots, split = _place(Path(root), split)
    if files := _pair_files(Path(root), roots, split):
        raise UserError(
            f"{files[0]}: lists pairs only; the official evaluation needs vcoco_{split}.json and COCO's instances"
        )
    reject = Rejects(f"V-COCO {split}:", lenient)
    verbs, coco = _official(roots, split, reject)
    row, roles = _boxes_of(verbs, coco, reject)
    reject.warn()
    unseen = int(((row < 0) & ~verbs.actions.any(1)).sum())
    if unseen:
        _log.warning(
            "V-COCO %s: %d persons annotated with no action have no box: they are not evaluated", split, unseen
        )
    person_rows = np.flatnonzero(coco.object == 0)
    position = np.full(len(coco.object) + 1, -1)  # of a box among the persons; the last entry serves row -1
    position[person_rows] = np.arange(len(person_rows))
    given = np.flatnonzero(row >= 0)
    at = position[row[given]]
    people = People(
        image_id=coco.image.astype(str),
        image=coco.box_image[person_rows].astype(np.int32),
        box=coco.box[person_rows],
        annotated=np.zeros(len(person_rows), bool),
        actions=np.zeros((len(person_rows), len(ACTIONS)), bool),
        role_box=np.zeros((len(person_rows), len(ROLES), 4), np.float32),
    )
    people.annotated[at] = True
    people.actions[at] = verbs.actions[given]
    people.role_box[at] = np.where(roles[given, :, None] >= 0, coco.box[roles[given]], 0)
    return people


def _place(root: Path, split: str | None) -> tuple[list[Path], str]:
    """Folders in which to look, and the split."""
    if not root.exists():
        raise UserError(f"{root}: no such file or folder; V-COCO's annotations were expected there")
    named = re.search(r"vcoco_(trainval|train|val|test)", root.name) if root.is_file() else None
    if named and split not in (None, named.group(1)):
        raise UserError(
            f"{root}: this is the file of the split {named.group(1)}, not of {split}; give the one or the other"
        )
    split = named.group(1) if named else split or _evaluated(root)
    if split not in ("train", "val", "trainval", "test"):
        raise UserError(f"{root}: V-COCO has the splits train, val, trainval and test, not {split!r}")
    return ([root.parent, *root.parent.parents[:2]] if root.is_file() else [root]), split


def _evaluated(root: Path) -> str:
    """The split that is evaluated unless another is asked for: test, or val where only val's files are there."""
    patterns = ("vcoco_{}.json", "instances_vcoco_{}.json")
    there = (split for pattern in patterns for split in ("test", "val") if split_files([root], pattern, split))
    return next(there, "test")


def _pair_files(root: Path, roots: list[Path], split: str) -> list[Path]:
    """Zhang's file or files, if it is them that are given; none if V-COCO's own verbs are there."""
    if root.is_file():
        return [root] if root.name.startswith("instances_vcoco") and is_pair_file(root) else []
    if split_files(roots, "vcoco_{}.json", split):
        return []
    files = split_files(roots, "instances_vcoco_{}.json", split)
    return files if files and is_pair_file(files[0]) else []


def _official(roots: list[Path], split: str, reject: Rejects) -> tuple[Verbs, Instances]:
    """The official files' persons, those in images that are there, and the boxes of the split's images."""
    verbs = read_verbs(require(roots, ["vcoco_{}.json"], split, "verbs"), ACTION_ROLES, reject)
    wanted = np.unique(verbs.image)
    if ids := split_files(roots, "vcoco_{}.ids", split):
        wanted = split_images(ids, wanted, reject)
    own = "instances_val2014.json" if split == "test" else "instances_train2014.json"
    alternatives = ["instances_vcoco_all_2014.json", "instances_vcoco_{}.json", own]
    coco = read_instances(require(roots, alternatives, split, "boxes (COCO's instances)"), wanted, reject)
    return verbs.take(np.flatnonzero(np.isin(verbs.image, coco.image))), coco


def _boxes_of(verbs: Verbs, coco: Instances, reject: Rejects) -> tuple[np.ndarray, np.ndarray]:
    """Rows of boxes: int64 ``[M]`` of each person, -1 without one; int64 ``[M, 25]`` of each role, -1 none, -2 rejected."""
    row, roles = coco.rows(verbs.person), coco.rows(verbs.roles)
    wanted = (verbs.roles > 0) & verbs.actions[:, SLOT_ACTION[ROLE_SLOTS]]
    elsewhere = coco.image[coco.box_image[row]] != verbs.image
    wrong = np.where(row < 0, verbs.actions.any(1), elsewhere | (coco.object[row] != 0))
    for m in np.flatnonzero(wrong):
        reason = coco.why_not(int(verbs.person[m])) if row[m] < 0 else "is of another image or no person"
        reject(
            f"image {verbs.image[m]}: the person {verbs.person[m]} {reason}; are verbs and instances of one release?"
        )
    elsewhere = coco.image[coco.box_image[roles]] != verbs.image[:, None]
    unusable = wanted & ((roles < 0) | elsewhere) & ~wrong[:, None]
    for m, role in np.argwhere(unusable):
        obj = int(verbs.roles[m, role])
        reason = coco.why_not(obj) if roles[m, role] < 0 else "is of another image"
        reject(f"image {verbs.image[m]}, person {verbs.person[m]}: {ROLES[role]} {obj} {reason}; remove the role")
    return np.where(wrong, -1, row), np.where(unusable, -2, np.where(wanted, roles, -1))


def _official_pairs(verbs: Verbs, coco: Instances, reject: Rejects) -> PairTable:
    row, roles = _boxes_of(verbs, coco, reject)
    obj = np.full((len(row), len(SLOTS)), -1)
    obj[:, ROLE_SLOTS] = roles
    person, slot = np.nonzero(verbs.actions[:, SLOT_ACTION] & (row >= 0)[:, None] & (obj > -2))
    human, obj = row[person], obj[person, slot]
    order = np.lexsort((slot, human))  # boxes are sorted by image
    human, obj, slot = human[order], obj[order], slot[order]
    return PairTable(
        image=coco.image,
        name=coco.name,
        size=coco.size,
        pair_image=coco.box_image[human],
        human_box=coco.box[human],
        object_box=np.where(obj[:, None] >= 0, coco.box[obj], np.float32(0)),
        object=np.where(obj >= 0, coco.object[obj], -1).astype(np.int16),
        slot=slot.astype(np.int16),
    )
