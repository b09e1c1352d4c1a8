"""What decides a training, without the cells that it reads: the same on every machine, and known before a teacher works.

The fingerprint of a training (:mod:`hoi_distill.pipeline.training.request`) holds digests of cached values. Another processor
rounds their last bits otherwise, and they are not known while the cache is empty. So a record of a finished training goes by
its *declaration*: the same parameters, images and annotations, and in the place of values the declared records of the tables,
down to the ones at the top, and the digests of what comes with a row (a line of a detections file).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hoi_distill.pipeline.training.binding import in_its_section
from hoi_distill.pipeline.training.request import chosen_of, digest_of
from hoi_distill.pipeline.workspace import Workspace
from hoi_distill.stages.data.sampling.splits import RARE_BELOW
from hoi_distill.stages.stage import fingerprint_record
from hoi_distill.stages.student.method import parameters_of
from hoi_distill.storage.digests import fingerprint


def declaration(workspace: Workspace) -> str:
    """The name of a training, of its evaluation and of all that they declare to read.

    Images with a recorded failure are not left out of it: which these are, only the cache knows.

    Raises:
        UserError: the student's section or a pair teacher's has a mistake.
    """
    rows, annotations = workspace.images.splits["test"], workspace.dataset["test"].digests()
    tested = digest_of(workspace.images.ids[rows].tobytes() + annotations.tobytes())
    return fingerprint({**_training(workspace), "test": tested})


def _training(workspace: Workspace) -> dict[str, Any]:
    method, config, data, needs, labels, records, labelled = chosen_of(workspace)
    images = workspace.images
    read = np.ones(len(records), bool) if needs.all_annotations else labelled
    roles: dict[str, Any] = {**needs.train, **needs.test}
    tables = _Tables(workspace)
    later: dict[str, Any] = {}  # keys that came later, so that records without them keep their declaration
    if len(labels.held_out):
        held_out = images.ids[images.splits["train"][labels.held_out]]
        later["validation"] = [digest_of(held_out.tobytes()), data.validate_every, data.patience]
    if data.rare_below != RARE_BELOW:
        later["rare_below"] = data.rare_below
    return {
        **later,
        "method": method.name,
        "version": method.version,
        "student": parameters_of(config, method.bookkeeping),
        "rows": digest_of(images.ids[images.splits["train"][records]].tobytes() + labelled.tobytes()),
        "annotations": digest_of(labels.annotations.digests()[records[read]].tobytes()),
        "before": digest_of(labels.before.tobytes()),
        "unseen": None if labels.split is None else digest_of(labels.split.unseen.tobytes()),
        "dropped": None if labels.dropped is None else digest_of(labels.dropped.digests()[records[labelled]].tobytes()),
        "vocabulary": workspace.vocabulary.digest(),
        "files": [digest.tobytes().hex() for digest in workspace.cache.memory.digests(needs.files)]
        if needs.files
        else [],
        "tables": {role: tables.declared(data.tables.name_of(role), wanted) for role, wanted in roles.items()},
        "text": tables.declared(data.tables.text, None) if needs.text and data.tables.text else None,
    }


class _Tables:
    """The declarations of a workspace's tables, each made once."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.made: dict[str, Mapping[str, Any]] = {}
        self.teachers: dict[str, str] = {}

    def declared(self, name: str, wanted: Any) -> Any:
        """A table and the columns that are read of it (None: all); None where the configuration has no such table."""
        if name not in self.workspace.nodes:
            return None
        return [list(wanted or self.workspace.nodes[name].stage.columns), self._table(name)]

    def _table(self, name: str) -> Mapping[str, Any]:
        if name not in self.made:
            stage = self.workspace.nodes[name].stage
            teacher = getattr(stage, "teacher", None)
            if teacher is not None:
                stage = stage.resolved(self._teacher(teacher.name), self.workspace.cache.root)  # type: ignore[attr-defined]
            source = self.workspace.sources[stage.source]
            beside = stage.source_digests(source.keys)
            self.made[name] = {
                "record": fingerprint(fingerprint_record(stage)),
                "columns": list(stage.columns),
                "beside": None if beside is None else digest_of(np.asarray(beside).tobytes()),
                "inputs": {up: self._table(up) for up in stage.inputs},
            }
        return self.made[name]

    def _teacher(self, name: str) -> str:
        if name not in self.teachers:
            with in_its_section(self.workspace.path, name):
                self.teachers[name] = fingerprint(_training(self.workspace.as_student(name)))
        return self.teachers[name]
