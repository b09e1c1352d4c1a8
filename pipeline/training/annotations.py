"""Which annotations a training sees: those of the first images, without a zero-shot split's classes, or a few of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from hoi_distill.pipeline.config.student import DataSection, FewShotSection
from hoi_distill.pipeline.training.agreement import pair_teacher_tables
from hoi_distill.pipeline.training.section import labelled_count
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.data.annotations import Annotations
from hoi_distill.stages.data.sampling import few_shot
from hoi_distill.stages.data.sampling.few_shot import FewShot
from hoi_distill.stages.data.sampling.splits import ZeroShotSplit
from hoi_distill.stages.data.sampling.training_rules import training_rule
from hoi_distill.stages.data.zero_shot import split_of
from hoi_distill.stages.student.method import METHODS, Method, Needs, method_named
from hoi_distill.storage.errors import UserError, did_you_mean


class LabelsRecord(TypedDict, total=False):
    """How annotations were taken away, as ``student.json`` says it."""

    zero_shot: dict[str, str | int]
    few_shot: dict[str, str | int]
    validation: int


@dataclass(frozen=True, eq=False)
class Labels:
    """The N records of the training split, as a training sees them.

    Attributes:
        annotations: all records, with the annotations that training may see. A method that reads no annotations gets none.
        labelled: ``bool [N]``, the records with annotations for the student.
        excluded: ``bool [N]``, the records that training may not see at all, as no seen class is annotated in them.
        before: ``int64 [H]``, annotated pairs of each class in the labelled images before anything was taken out. Where no
            image is labelled, those in all images. For evaluation.
        split: the zero-shot split.
        few: the list of drawn annotations.
        dropped: all records, with the annotations that were not drawn.
        left_out: ``{reason: images}`` of the excluded records.
        held_out: ``int64 [V]``, rising, the annotated records by which the best student is chosen, which are excluded.
    """

    annotations: Annotations
    labelled: np.ndarray
    excluded: np.ndarray
    before: np.ndarray
    split: ZeroShotSplit | None = None
    few: FewShot | None = None
    dropped: Annotations | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    held_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def seen(self) -> np.ndarray:
        """int64 ``[H]``: annotated pairs of each class that training sees."""
        return pairs_of(self.annotations, self.labelled)

    def record(self) -> LabelsRecord:
        """What ``student.json`` says about them: nothing where all annotations of the labelled images are used."""
        record: LabelsRecord = {}
        if self.split is not None:
            record["zero_shot"] = {"split": self.split.name, "unseen_classes": int(self.split.unseen.sum())}
        if self.few is not None:
            named = {key: getattr(self.few, key) for key in ("shots", "seed", "classes")}
            record["few_shot"] = {**named, "annotations": len(self.few), "digest": self.few.digest()}
        if len(self.held_out):
            record["validation"] = len(self.held_out)
        return record

    def words(self) -> str:
        """The same as the end of a sentence."""
        words = "" if self.split is None else f". The {self.split.unseen.sum()} classes of {self.split.name} are unseen"
        if self.few is not None:
            words += f". At most {self.few.shots} annotations a class, {len(self.few):,} in all (seed {self.few.seed})"
        if len(self.held_out):
            words += f". {len(self.held_out):,} images are held out to choose the best student"
        return words


def labels_of(workspace: Workspace, data: DataSection, method: Method, needs: Needs, distinct: np.ndarray) -> Labels:
    """Take the labelled images, then what the zero-shot split leaves of them, then draw a few of that.

    Args:
        workspace: where the training split is.
        data: which images and annotations the student gets.
        method: the student's method.
        needs: what the method reads.
        distinct: ``int64 [P]``, the first record of each row. The other records are no images of their own.

    Raises:
        UserError: there are fewer images, or a split, list or method does not go with the rest.
    """
    train, where = workspace.dataset["train"], f"{workspace.path}: student."
    there, few_section = len(train), data.few_shot
    count = labelled_count(data.labelled, train, where, trial=workspace.limit is not None)
    refuse_unjudged(method, data, where)
    if count == 0 or not needs.annotations:
        return unlabelled(train, needs)
    labelled = np.arange(there) < count
    labels = Labels(train, labelled, np.zeros(there, bool), pairs_of(train, labelled))
    if data.zero_shot is not None:
        refuse_unable(method, f"{where}zero_shot: {data.zero_shot}")
        try:
            split = split_of(workspace.vocabulary, data.zero_shot)
        except UserError as error:
            raise UserError(f"{where}zero_shot: {error}") from None
        labels = without_unseen(labels, split, data.training_rule)
    for teacher in pair_teacher_tables(workspace, data, needs):
        teacher.refuse_better_taught(data)
    if few_section is not None:
        if few_section.ignore_dropped:
            refuse_unable(method, f"{where}few_shot")
        if needs.all_annotations:
            raise UserError(
                f"{where}few_shot: this training reads all annotations, drawn or not; choose another teacher"
            )
        labels = with_few(labels, few_section, distinct[labels.labelled[distinct]], f"{where}few_shot")
    labels = without_held_out(workspace, labels, data.validation, distinct)
    if not labels.labelled.any():
        raise UserError(f"{where}labelled: no annotation is left to train on; label more images")
    return labels


def unlabelled(train: Annotations, needs: Needs) -> Labels:
    """No image is labelled: training is handed no annotations, or those of all images where it is a control."""
    none, every = np.zeros(len(train), bool), np.ones(len(train), bool)
    seen = train if needs.all_annotations else without_annotations(train)
    return Labels(seen, none, none, pairs_of(train, every))


def without_annotations(whole: Annotations) -> Annotations:
    """The same records, of which nothing is said: no pair and no image-level label."""
    return replace(whole.with_pairs(np.zeros(len(whole.hoi), bool)), image_hois=None)


def refuse_unable(method: Method, what: str) -> None:
    """Raises UserError where a method cannot leave classes or annotations out of its training."""
    if not method.zero_shot:
        able = [name for name in METHODS if method_named(name).zero_shot]
        raise UserError(
            f"{what}: {method.name} cannot leave annotations out of its loss; methods that can: {', '.join(able)}"
        )


def refuse_unjudged(method: Method, data: DataSection, where: str) -> None:
    """Raises UserError where images are held out and the method does not choose its best student by them, or none are and
    a key says how."""
    if data.validation is None:
        for key in ("validate_every", "patience"):
            if getattr(data, key):
                raise UserError(f"{where}{key}: there are no held-out images; write validation: 0.2, or take it away")
    elif not method.validates:
        able = [name for name in METHODS if method_named(name).validates]
        raise UserError(
            f"{where}validation: {method.name} does not choose its best student; methods that do: {', '.join(able)}"
        )


def without_unseen(labels: Labels, split: ZeroShotSplit, rule: str) -> Labels:
    """What a zero-shot training may see. Labelled images without any of it are left out, also as unlabelled ones."""
    whole = labels.annotations
    kept = training_rule(rule)(whole, split.unseen)
    held = np.isin(whole.image_id, kept.image_id)
    seen = among(whole, np.flatnonzero(held), kept)
    if whole.image_hois is not None:
        seen = replace(seen, image_hois=whole.image_hois & ~split.unseen)
    excluded = labels.labelled & ~held
    reason = f"no annotation outside {split.name}'s unseen classes ({rule})"
    return replace(
        labels,
        annotations=seen,
        labelled=labels.labelled & held,
        excluded=excluded,
        split=split,
        left_out={reason: int(excluded.sum())} if excluded.any() else {},
    )


def with_few(labels: Labels, section: FewShotSection, pool: np.ndarray, where: str) -> Labels:
    """A few annotations of each class, drawn among the labelled records ``pool`` (int64, rising); the other images count
    as unlabelled."""
    whole = labels.annotations
    among_labelled = whole.take(pool)
    if section.file is None:
        few = few_shot.draw(among_labelled, section.shots, section.seed, section.classes)
    else:
        few = FewShot.load(section.file)
        said = {"shots": few.shots, "seed": few.seed, "classes": few.classes}
        for key, value in said.items():
            if getattr(section, key) != value:
                raise UserError(
                    f"{where}.{key}: {getattr(section, key)!r}, but {section.file} has {value!r}; write that"
                )
    try:
        drawn, rest = few_shot.apply(among_labelled, few)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    held = pool[np.isin(among_labelled.image_id, drawn.image_id)]
    labelled = np.zeros_like(labels.labelled)
    labelled[held] = True
    return replace(
        labels,
        annotations=among(whole, held, drawn),
        labelled=labelled,
        few=few,
        dropped=among(whole, held, rest) if section.ignore_dropped else None,
    )


def without_held_out(workspace: Workspace, labels: Labels, chosen: float | Path | None, distinct: np.ndarray) -> Labels:
    """What a training sees if some of its labelled images are held out.

    Args:
        workspace: where the training split is.
        labels: what it sees otherwise.
        chosen: the share of the labelled images, or a text file of names; None: none are held out. A share is chosen by the
            images' bytes, so that it is the same for every seed, and a new image moves few others.
        distinct: ``int64 [P]``, the first record of each row.

    Raises:
        UserError: a name that is no labelled image, or nothing to judge by.
    """
    if chosen is None:
        return labels
    where = f"{workspace.path}: student.validation"
    pool = distinct[labels.labelled[distinct]]
    if isinstance(chosen, Path):
        held = pool[np.isin(labels.annotations.image_id[pool], names_in(chosen, labels.annotations, pool, where))]
    else:
        order = np.argsort(workspace.images.ids[workspace.images.splits["train"][pool]], kind="stable")
        held = np.sort(pool[order[: max(1, round(chosen * len(pool)))]])
    held_out = labels.annotations.take(held)
    if not (held_out.hoi >= 0).any():
        raise UserError(
            f"{where}: none of the {len(held)} images that are held out has an annotated pair; hold out more"
        )
    excluded, labelled = labels.excluded.copy(), labels.labelled.copy()
    excluded[held], labelled[held] = True, False
    left_out = {**labels.left_out, "held out for validation": len(held)}
    return replace(labels, excluded=excluded, labelled=labelled, left_out=left_out, held_out=held)


def names_in(file: Path, train: Annotations, pool: np.ndarray, where: str) -> list[str]:
    """The names of images in a text file, one a line.

    Raises:
        UserError: it cannot be read, is empty, or names an image that is none of the records ``pool`` (int64).
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise UserError(f"{where}: {file}: cannot be read ({reason}); it should name images, one a line") from None
    there = set(train.image_id[pool].tolist())
    if unknown := [name for name in names if name not in there]:
        near = did_you_mean(unknown[0], there)
        raise UserError(f"{where}: {file}: {unknown[0]!r} is no labelled training image{near}; correct the name")
    if not names:
        raise UserError(f"{where}: {file}: no name in it; write one image a line")
    return names


def among(whole: Annotations, records: np.ndarray, part: Annotations) -> Annotations:
    """The pairs of ``part``, whose images are the rising ``records`` of ``whole``, and none in its other images."""
    counts = np.zeros(len(whole), np.int64)
    counts[records] = np.diff(part.pair_offsets)
    return replace(
        whole,
        pair_offsets=np.concatenate([[0], np.cumsum(counts)]),
        human_box=part.human_box,
        object_box=part.object_box,
        object=part.object,
        verb=part.verb,
        hoi=part.hoi,
        image_hois=None,
    )


def pairs_of(annotations: Annotations, labelled: np.ndarray) -> np.ndarray:
    """int64 ``[H]``: pairs of each class in the records of bool ``labelled``."""
    assert annotations.vocabulary is not None
    hoi = annotations.hoi[labelled[annotations.pair_image()]]
    return np.bincount(hoi[hoi >= 0], minlength=len(annotations.vocabulary))
