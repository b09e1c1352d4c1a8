"""Few-shot training sets: at most K annotations of each class, drawn by a seed, kept as a list in a file.

The protocol is this project's own (no HOI paper publishes one): each class has min(K, available) annotations, lists of
one seed are nested in K, everything else is dropped, and what is dropped in the images that stay is unlabelled, not
negative.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.storage.errors import UserError

SHOTS: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
SEEDS: tuple[int, ...] = (0, 1, 2)
CLASSES: tuple[str, ...] = ("hoi", "verb")

Entry = tuple[float, ...]
"""verb, object, and the human's and the object's xyxy: what an annotation says, wherever its row is."""


@dataclass(frozen=True)
class FewShot:
    """A drawn list.

    Attributes:
        dataset: The annotations' name.
        vocabulary: Its digest.
        classes: What K counts, "hoi" or "verb".
        shots: K.
        seed: Of the draw.
        entries: Of each image, by image id, its drawn annotations, sorted.
    """

    dataset: str
    vocabulary: str
    classes: str
    shots: int
    seed: int
    entries: dict[str, tuple[Entry, ...]]

    def __len__(self) -> int:
        """Number of annotations."""
        return sum(map(len, self.entries.values()))

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self._record(), sort_keys=True).encode()).hexdigest()

    def digest(self) -> str:
        """Hexadecimal SHA-256 of all of it."""
        return self._digest

    def _record(self) -> dict[str, Any]:
        named = ("dataset", "vocabulary", "classes", "shots", "seed")
        return {name: getattr(self, name) for name in named} | {
            "entries": {
                image_id: [[int(verb), int(obj), *corners] for verb, obj, *corners in rows]
                for image_id, rows in self.entries.items()
            }
        }

    def save(self, path: str | Path) -> None:
        """Write as JSON, one image a line: {"source", ..., "entries": {image id: [[verb, object, 8 corners], ...]}}."""
        record = self._record()
        entries = record.pop("entries")
        source = f"{self.shots} annotations a class of {self.dataset}, drawn with seed {self.seed}"
        lines = [f"  {json.dumps(image_id)}: {json.dumps(rows)}" for image_id, rows in entries.items()]
        head = json.dumps({"source": source, **record}, indent=1)[:-2]
        Path(path).write_text(head + ',\n "entries": {\n' + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> FewShot:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: With the file and what is wrong in it.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            entries = {
                str(key): tuple(tuple(map(float, row)) for row in rows) for key, rows in record["entries"].items()
            }
            few = cls(
                str(record["dataset"]), str(record["vocabulary"]), str(record["classes"]),
                int(record["shots"]), int(record["seed"]), entries,
            )  # fmt: skip
        except KeyError as error:
            raise UserError(f"{path}: no entry {error} in the few-shot list; draw it again") from error
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}: not a few-shot list ({error}); draw it again") from error
        for image_id, rows in entries.items():
            if any(len(row) != 10 for row in rows):
                raise UserError(f"{path}: {image_id}: an entry is a verb, an object and 8 corners; draw the list again")
        return few


def draw(annotations: Annotations, shots: int, seed: int, classes: str = "hoi") -> FewShot:
    """min(shots, available) annotations of each class.

    Each annotation's rank in its class is a hash of the seed, the image's id and what the annotation says. So the list
    does not depend on the order of images or pairs, a larger K only adds, and an annotation given twice counts once.

    Args:
        annotations: All of them.
        shots: K.
        seed: Of the draw.
        classes: "hoi" (HICO-DET's 600) or "verb" (V-COCO's actions).

    Raises:
        UserError: For classes or shots that cannot be, or annotations without a vocabulary.
    """
    if classes not in CLASSES:
        raise UserError(f"few-shot classes are {' or '.join(CLASSES)}, not {classes!r}")
    if shots < 1:
        raise UserError(f"few-shot lists have at least 1 annotation a class, not {shots}")
    if annotations.vocabulary is None:
        raise UserError(f"{annotations.name}: no vocabulary, so no classes to draw few shots of")
    label = annotations.hoi if classes == "hoi" else annotations.verb
    said, image = _said(annotations), annotations.pair_image()
    ids = annotations.image_id[image]
    start = hashlib.blake2b(str(seed).encode(), digest_size=8)
    priority = np.fromiter((_hash(start, a, b) for a, b in zip(ids.tolist(), said, strict=True)), np.uint64, len(said))

    order = np.lexsort((priority, label))
    once = np.diff(priority[order], prepend=~priority[order[:1]]) != 0  # the same annotation again has the same hash
    order = order[once & (label[order] >= 0)]
    rank = np.arange(len(order)) - np.searchsorted(label[order], label[order], "left")
    drawn = order[rank < shots]
    entries: dict[str, list[Entry]] = {}
    for image_id, row in zip(ids[drawn].tolist(), said[drawn].tolist(), strict=True):
        entries.setdefault(image_id, []).append(tuple(row))
    return FewShot(
        annotations.name, annotations.vocabulary.digest(), classes, shots, seed,
        {image_id: tuple(sorted(entries[image_id])) for image_id in sorted(entries)},
    )  # fmt: skip


def apply(annotations: Annotations, few: FewShot) -> tuple[Annotations, Annotations]:
    """The images that have a drawn annotation: first with their drawn annotations, then with all their others.

    A trainer should ignore, not punish, what overlaps one of the others. Image-level labels are dropped: they would give
    away what is not drawn.

    Raises:
        UserError: If the list is of another vocabulary, or names an image or a pair that is not there.
    """
    if annotations.vocabulary is None or annotations.vocabulary.digest() != few.vocabulary:
        raise UserError(
            f"few-shot list of {few.dataset}: drawn for other classes than {annotations.name}'s; draw it again"
        )
    ids = annotations.image_id.tolist()
    if missing := sorted(few.entries.keys() - set(ids)):
        raise UserError(f"few-shot list of {few.dataset}: no image {missing[0]} in {annotations.name}; draw it again")
    kept = [i for i, image_id in enumerate(ids) if image_id in few.entries]
    images = replace(annotations, image_hois=None).take(np.array(kept, np.int64))
    said = list(map(tuple, _said(images).tolist()))
    drawn = np.zeros(len(said), bool)
    for i, image_id in enumerate(images.image_id.tolist()):
        wanted, rows = set(few.entries[image_id]), images.pairs(i)
        drawn[rows] = [row in wanted for row in said[rows]]
        if lost := wanted.difference(said[rows]):
            verb, obj, *corners = min(lost)
            raise UserError(
                f"few-shot list of {few.dataset}: {image_id} has no annotation of verb {verb:.0f} and object {obj:.0f} "
                f"with boxes {corners}; draw it again"
            )
    return images.with_pairs(drawn), images.with_pairs(~drawn)


def _said(annotations: Annotations) -> np.ndarray:
    """float64 [P, 10]: verb, object and both boxes of each pair."""
    columns = (annotations.verb, annotations.object, annotations.human_box, annotations.object_box)
    return np.column_stack(columns).astype(np.float64) + 0.0  # -0.0 and 0.0 are the same corner


def _hash(start: Any, image_id: str, said: np.ndarray) -> int:
    record = start.copy()
    record.update(image_id.encode() + b"\0" + said.astype("<f8", copy=False).tobytes())
    return int.from_bytes(record.digest(), "little")
