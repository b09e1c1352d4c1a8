"""What a training and a prediction are given, whatever the method: images, tables, annotations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.source import SampleSource
from hoi_distill.storage.digests import content_name

NO_ANNOTATIONS = np.empty((0, 4), np.float32), np.empty((0, 4), np.float32), np.empty(0, np.int16)


Report = Callable[[str], None]


ReadImage = Callable[[int], np.ndarray]
"""uint8 ``[height, width, 3]`` of a row."""


@dataclass(frozen=True)
class TrainingSet:
    """N training images, some of them labelled.

    Attributes:
        source: their tables: ``detections``, ``features`` (teacher's maps), ``itm`` (soft labels from ITM).
        annotations: records of all of them; those of unlabelled images are read by the oracle control only.
        image: int64 ``[N]``, each row's record among the annotations.
        labelled: bool ``[N]``.
        prompts: for each of the H interactions its column of the ``itm`` table, or None where the table has none.
        read: uint8 ``[height, width, 3]`` of a row; needed by the ``region_cnn`` encoder only.
        identity: names the rows, labels and values, so that a state saved for others is not resumed.
        values: by table, names the cells read of it: what depends on some tables alone can be shared by that name.
        unseen: bool ``[H]``, the interactions that training may not see (zero-shot); they come back at prediction.
        dropped: annotations of the same records that are set aside (few-shot): what they name is neither positive nor
            negative in training.
        pair_questions: the columns of the ``pair_answers`` table; None: all of the vocabulary's.
    """

    source: SampleSource
    annotations: Annotations
    image: np.ndarray
    labelled: np.ndarray
    prompts: Sequence[str | None]
    read: ReadImage | None = None
    identity: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    unseen: np.ndarray | None = None
    dropped: Annotations | None = None
    pair_questions: Sequence[str] | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the annotations."""
        assert self.annotations.vocabulary is not None
        return self.annotations.vocabulary

    def true_pairs(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Annotated human and object boxes (float32 ``[G, 4]``) and interactions (int16 ``[G]``) of a row; what is of no class
        (V-COCO's verbs without an object, for one) is not among them."""
        return _pairs(self.annotations, int(self.image[row]))

    def dropped_pairs(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of the annotations that are set aside."""
        return NO_ANNOTATIONS if self.dropped is None else _pairs(self.dropped, int(self.image[row]))

    def name_of(self, role: str, columns: Sequence[str | None]) -> str | None:
        """Names an array of one row for each image that is made of one table's cells alone.

        Args:
            role: the table's.
            columns: what the array's columns are, in order; None for one without cells.

        Returns:
            16 hex digits. None where the cells have no name.
        """
        if role not in self.values or self.source.rows_digest is None:
            return None
        return content_name(json.dumps([self.source.rows_digest, self.values[role], list(columns)]).encode(), 8)

    @property
    def seen(self) -> np.ndarray:
        """bool ``[H]``, the interactions that training may see."""
        return np.ones(len(self.vocabulary.hois), bool) if self.unseen is None else ~self.unseen

    def valid(self) -> np.ndarray:
        """bool ``[objects, H]``: which interactions an object class allows in training, where none is unseen."""
        return valid_classes(self.vocabulary) & self.seen

    def present(self, row: int) -> np.ndarray:
        """bool ``[H]``: the interactions that the annotations find in the image."""
        present = np.zeros(len(self.vocabulary.hois), bool)
        if self.annotations.image_hois is not None:
            present |= self.annotations.image_hois[self.image[row]]
        present[self.true_pairs(row)[2]] = True
        return present


@dataclass(frozen=True)
class TestSet:
    """M images to predict.

    Attributes:
        source: their tables: ``detections``, ``features``.
        image_ids: their names.
        read: uint8 ``[height, width, 3]`` of a row; needed by methods that read images themselves.
        identity: names the rows and values.
    """

    source: SampleSource
    image_ids: Sequence[str]
    read: ReadImage | None = None
    identity: str = ""


def _pairs(records: Annotations, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own = records.pairs(image)
    classes = records.hoi[own]
    known = classes >= 0
    return records.human_box[own][known], records.object_box[own][known], classes[known]


def valid_classes(vocabulary: Vocabulary) -> np.ndarray:
    """bool ``[objects, H]``: which interactions an object class allows."""
    valid = np.zeros((len(vocabulary.objects), len(vocabulary.hois)), bool)
    valid[vocabulary.hois[:, 1], np.arange(len(vocabulary.hois))] = True
    return valid
