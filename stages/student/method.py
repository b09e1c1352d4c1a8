"""What a student method is: what it reads, how it is trained and how it is loaded. The pipeline knows methods by this alone.

A method is a small declarative object that imports nothing heavy until it trains or loads; :data:`METHODS` lists them.
A student is trained from a :class:`~hoi_distill.stages.student.data.TrainingSet` and is then a
:class:`~hoi_distill.stages.student.student.Student`, which predicts a :class:`~hoi_distill.stages.student.data.TestSet`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from typing_extensions import TypeVar

from hoi_distill.stages.student.student import CheckpointRecord, Columns, Identities
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    import threading

    import numpy as np
    from torch import Tensor

    from hoi_distill.stages.data.vocabulary import Vocabulary
    from hoi_distill.stages.student.data import TrainingSet
    from hoi_distill.stages.student.student import HeldOut, Student

METHODS: dict[str, str] = {
    "pair_classifier": "hoi_distill.stages.student.methods.pair_classifier.method:PairClassifierMethod",
    "vlm_hoi": "hoi_distill.stages.student.methods.vlm_hoi.method:VlmHoiMethod",
    "link": "hoi_distill.stages.student.methods.link.method:LinkMethod",
    "cl_hoi": "hoi_distill.stages.student.methods.cl_hoi.method:ClHoiMethod",
}
"""What may stand under ``student.method``; the first is the default."""


@dataclass(frozen=True)
class Needs:
    """What a training reads. Tables go by their role: ``detections``, ``features``, ``itm``.

    Attributes:
        train: the columns that are read of the training images.
        test: the columns that are read of the test images.
        where_asked: roles of which only the columns are read that the table has. The others count as not computed.
        text: whether the embeddings of the vocabulary's prompts are read, where there is such a table.
        unlabelled: whether images without annotations are used.
        annotations: whether annotations are read at all; if not, the training gets none.
        unlabelled_suffice: whether it can train without one labelled image.
        all_annotations: whether even the annotations of unlabelled images are read (a control).
        untuned_detector: whether a detector that has learned from a dataset of interactions is refused.
        failures: roles whose recorded failures leave an image out, where there is such a table. They may be roles that are
            not read, so that variants of a study use the same images.
        files: files with weights that the training starts from.
        stages: by table's own name, the key that names it and the stage that must have written it.
    """

    train: Mapping[str, Columns]
    test: Mapping[str, Columns]
    where_asked: tuple[str, ...] = ()
    text: bool = False
    unlabelled: bool = False
    annotations: bool = True
    unlabelled_suffice: bool = False
    all_annotations: bool = False
    untuned_detector: bool = False
    failures: tuple[str, ...] = ("detections", "features")
    files: tuple[Path, ...] = ()
    stages: Mapping[str, tuple[str, str]] = field(default_factory=dict)


Track = Callable[[Mapping[str, float], int], None]
"""Gets what is logged at a step: ``({name: value}, step)``."""


def untracked(values: Mapping[str, float], step: int) -> None:
    """Where no tracker listens."""


@dataclass(frozen=True)
class Extras:
    """What a training gets in addition to images and parameters.

    Attributes:
        text_embeddings: float32 ``[H, T]`` of the interactions' prompts, from which a classifier's rows start.
        identities: what made the tables that the student reads at test time; kept in its checkpoint.
        shared_dir: where variants of a study keep what they share; None: each method has a place of its own for it.
        stop: once it is set, the loop finishes and saves the current step and raises KeyboardInterrupt.
        report: gets lines on the progress of the training.
        track: gets what is logged at a step, ``({name: value}, step)``.
        held_out: annotated images by which the best student is chosen. None: the last one is taken.
    """

    shared_dir: Path | None = None
    text_embeddings: np.ndarray | None = None
    identities: Identities = field(default_factory=dict)
    stop: threading.Event | None = None
    report: Callable[[str], None] = print
    track: Track = untracked
    held_out: HeldOut | None = None

    def text(self) -> Tensor | None:
        """The text embeddings as a float32 tensor."""
        import torch

        return None if self.text_embeddings is None else torch.from_numpy(self.text_embeddings.astype("float32"))


NOTHING = Extras()


LATER = {"later": True}
"""Marks a key that a method got later: ``key: Rate = field(default=0.0, metadata=LATER)``.

The default is what the method did before it had the key. It is a plain value or a frozen record, no factory. A training with the
default keeps its fingerprint. Without the mark a new key gives every training of the method another fingerprint.
"""


def parameters_of(config: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """The keys of a configuration that enter a fingerprint, as plain values.

    A key that is marked :data:`LATER` does not enter if it has its default.

    Args:
        config: the method's parameters, a dataclass.
        without: keys that do not enter.
    """

    def pruned(record: dict[str, Any], part: Any) -> dict[str, Any]:
        for field_ in fields(part):
            value = getattr(part, field_.name)
            if field_.metadata.get("later") and value == field_.default:
                del record[field_.name]
            elif is_dataclass(value):
                pruned(record[field_.name], value)
        return record

    return {name: value for name, value in pruned(asdict(config), config).items() if name not in without}


ConfigT = TypeVar("ConfigT", default=Any)


class Method(ABC, Generic[ConfigT]):
    """One way of training a student.

    A method is a folder. Beside the module of this declaration stand ``train``, whose function ``train`` trains, and
    ``student``, whose function ``load`` loads. They are imported when they are called.

    Attributes:
        name: its name in configurations.
        version: raised by hand when the same parameters come to train other weights; part of the fingerprint.
        config: the method's keys in a configuration, a class of :func:`hoi_distill.stages.keys.settings`; has ``seed``.
        bookkeeping: its fields that change no weight.
        zero_shot: whether its training leaves ``TrainingSet.unseen`` out and ignores ``TrainingSet.dropped``.
        validates: whether its training chooses the best student by ``Extras.held_out``.
        attends: whether its students tell where they look for a pair (``Student.pair_attention``).
    """

    name: ClassVar[str]
    version: ClassVar[int]
    config: type[ConfigT]
    bookkeeping: ClassVar[tuple[str, ...]]
    zero_shot: ClassVar[bool] = False
    validates: ClassVar[bool] = False
    attends: ClassVar[bool] = False

    @abstractmethod
    def needs(self, config: ConfigT, vocabulary: Vocabulary) -> Needs:
        """What a training with these parameters reads."""

    def sized(self, config: ConfigT, labelled: int, unlabelled: int) -> ConfigT:  # noqa: ARG002 - a default
        """The parameters for so many training images: with the steps that follow from the epochs that are wanted."""
        return config

    @abstractmethod
    def epochs(self, config: ConfigT, labelled: int, unlabelled: int) -> float:
        """How often a training goes through the images that it learns from first of all, the labelled ones where there are
        any. Of so many training images some may have no pair, so this is a little too low."""

    def distilled(self, config: ConfigT, labelled: int, unlabelled: int) -> Mapping[str, int]:  # noqa: ARG002 - a default
        """How many training images are distilled on, by the key that decides it; empty where the parameters want no
        distillation."""
        return {}

    def rehearse(self, config: ConfigT, vocabulary: Vocabulary) -> None:
        """Everything of a training that needs no table, so that a teacher does not work for one that is then refused.

        Raises:
            UserError: what :meth:`train` would raise.
        """

    def pair_teacher(self, name: str, config: ConfigT, detections: str, features: str, maps: tuple[int, ...]) -> Any:  # noqa: ARG002 - a default
        """A student of this method as a teacher of pairs: what its stages take as ``teacher`` while its training is unknown.

        Args:
            name: the configuration's name for it.
            config: the method's parameters.
            detections: the table of boxes that it reads.
            features: the table of feature maps that it reads.
            maps: shape of these, ``(C, h, w)``.

        Raises:
            UserError: beginning with a key of the section: students of this method, or of these parameters, do not teach.
        """
        raise UserError(f"method: {self.name!r}; a pair teacher is of method link")

    def train(self, config: ConfigT, data: TrainingSet, run_dir: Path, extras: Extras) -> Student:
        """Train to the end, from the last save in ``run_dir`` if there is one, and save ``run_dir/checkpoint``."""
        student: Student = self._neighbour("train").train(config, data, run_dir, extras)
        return student

    def load(self, folder: Path, record: CheckpointRecord, vocabulary: Vocabulary) -> Student:
        """A saved student; ``record`` is its ``config.json``."""
        student: Student = self._neighbour("student").load(folder, record, vocabulary)
        return student

    @classmethod
    def _neighbour(cls, name: str) -> Any:
        return importlib.import_module(f"{cls.__module__.rpartition('.')[0]}.{name}")

    @abstractmethod
    def trained_on(self, config: ConfigT, labelled: int, unlabelled: int) -> str:
        """What the student learns from, as a noun phrase, for reports."""

    @abstractmethod
    def facts(self, config: ConfigT) -> tuple[tuple[str, str], ...]:
        """(name, value) of further facts on the training for a report's head."""


def method_named(name: str, where: str = "student.method") -> Method:
    """Raises UserError, beginning with ``where``, for a name that is none."""
    if name not in METHODS:
        raise UserError(f"{where}: no method {name!r}; there are {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    made: Method = getattr(importlib.import_module(module), attribute)()
    return made
