"""Training as a stage: resolved from the configuration, named by everything that it depends on, run once."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
from pydantic import Field, ValidationError, create_model

from pipeline.config import Section, explain
from pipeline.plan import TablePlan, align, plan
from pipeline.progress import duration
from pipeline.setup import Setup, is_folder
from stages.stage import fingerprint_record
from stages.student.config import StudentConfig
from storage.digests import canonical_json, fingerprint
from storage.errors import InputFailure, UserError

if TYPE_CHECKING:
    from stages.student.checkpoint import Student
    from stages.student.prepare import TestSet, TrainingSet
    from storage.stream import StreamSpec

LIBRARIES = ("torch", "accelerate", "transformers", "numpy")


class Roles(Section):
    """Which of the configuration's tables plays which part for the student."""

    detections: str = "detections"
    features: str = "features"
    itm: str = "itm"
    text: str | None = "text"
    captions: str | None = "captions"


class Pictures(Section):
    """Which training pictures the student gets: the first ``labelled`` with their annotations, the rest without."""

    labelled: int = Field(ge=1)
    unlabelled: int | None = Field(None, ge=0)
    """How many of the rest; all by default."""
    tables: Roles = Roles()


@dataclass(frozen=True)
class Part:
    """The cells of one table that a training or an evaluation reads.

    Attributes:
        columns: the wanted columns.
        inputs: the input digests of the asked rows, as :class:`storage.stream.TableRef` takes them.
        values: digest over the value digests of all asked cells, failures included.
    """

    role: str
    made: TablePlan
    columns: tuple[str, ...]
    inputs: np.ndarray | None
    values: str


@dataclass(frozen=True)
class Resolved:
    """A student's training with nothing left to look up.

    Attributes:
        records: ``int64 [N]`` records of the training split, ``labelled`` (bool ``[N]``) of them with annotations.
        tested: ``int64 [M]`` records of the test split that can be looked at; the others count as without detections.
        left_out: ``{reason: pictures}`` of the training pictures that are recorded failures.
        train, test: the tables read, by role.
        fingerprint: of the trained weights; ``evaluation`` of the figures.
    """

    config: StudentConfig
    pictures: Pictures
    records: np.ndarray
    labelled: np.ndarray
    tested: np.ndarray
    left_out: dict[str, int]
    train: dict[str, Part]
    test: dict[str, Part]
    text: Part | None
    fingerprint: str
    evaluation: str


def student_section(setup: Setup) -> tuple[StudentConfig, Pictures]:
    """The ``student:`` section: how to train and on which pictures."""
    document = setup.config.student
    if document is None or is_folder(setup):
        what = "this setup has no annotations" if is_folder(setup) else "missing"
        raise UserError(f"{setup.path}: student: {what}; training needs labelled pictures, see configs/pico.yaml")
    hints = get_type_hints(StudentConfig)
    own: dict[str, Any] = {field.name: (hints[field.name], field.default) for field in fields(StudentConfig)}
    model = create_model("Student", __base__=Pictures, **own)
    try:
        checked = model.model_validate(document)
    except ValidationError as error:
        raise UserError(explain(error, document, f"{setup.path}: student.", model)) from None
    config = StudentConfig(**{field.name: getattr(checked, field.name) for field in fields(StudentConfig)})
    return config, Pictures(**{name: getattr(checked, name) for name in Pictures.model_fields})


def resolve(setup: Setup, plans: Mapping[str, TablePlan]) -> Resolved:
    """Find the pictures, tables and cells that this student reads, and the fingerprint that they add up to."""
    config, pictures = student_section(setup)
    train, test = setup.dataset["train"], setup.dataset["test"]
    source = setup.sources["images"]
    records = np.sort(np.unique(source.splits["train"], return_index=True)[1])  # one record a row
    if pictures.labelled > len(train.path):
        raise UserError(
            f"{setup.path}: student.labelled: {pictures.labelled} of only {len(train.path)} training pictures"
        )
    labelled = records < pictures.labelled
    keep = labelled.copy()
    distils = config.itm_on in ("unlabelled", "both") and config.itm_weight > 0
    if distils or config.encoder == "region_cnn":  # that encoder learns from the boxes of every picture
        others = np.flatnonzero(~labelled)
        keep[others[: pictures.unlabelled]] = True
    records, labelled = records[keep], labelled[keep]
    left_out: Counter[str] = Counter()
    tested = np.arange(len(test.path))
    for name in (pictures.tables.detections, pictures.tables.features):
        if name not in plans:
            continue
        bad = failed_rows(setup, plans[name], source.splits["train"][records], name)
        left_out.update(bad.values())
        sound = ~np.isin(np.arange(len(records)), list(bad))
        records, labelled = records[sound], labelled[sound]
        bad = failed_rows(setup, plans[name], source.splits["test"][tested], name)
        tested = tested[~np.isin(np.arange(len(tested)), list(bad))]
    if not labelled.any():
        raise UserError(f"{setup.path}: student.labelled: every labelled picture is a recorded failure")

    roles = pictures.tables
    wanted: dict[str, Sequence[str] | None] = {roles.detections: None}
    if config.encoder == "teacher":
        wanted[roles.features] = config.views
    test_wanted = {**wanted, **({roles.features: config.views[:1]} if config.encoder == "teacher" else {})}
    if config.itm_on != "none" and config.itm_weight > 0 and config.teacher in ("itm", "shuffled"):
        wanted[roles.itm] = [p for p in setup.vocabulary.prompts() if p in _columns(setup, plans, roles.itm)]
    names = {roles.detections: "detections", roles.features: "features", roles.itm: "itm"}
    train_rows, test_rows = source.splits["train"][records], source.splits["test"][tested]
    train_parts = {names[n]: part_of(setup, plans, n, c, train_rows, "images") for n, c in wanted.items()}
    test_parts = {names[n]: part_of(setup, plans, n, c, test_rows, "images") for n, c in test_wanted.items()}
    texts = setup.sources["texts"]
    text = part_of(setup, plans, roles.text, None, np.arange(len(texts.ids)), "texts") if roles.text else None

    annotated = train.digests()
    read = np.ones(len(records), bool) if config.teacher == "oracle" else labelled
    bookkeeping = ("log_every", "save_every", "predict_batch")
    training = {
        "method": "pair_classifier",
        "version": 1,
        "student": {k: v for k, v in asdict(config).items() if k not in bookkeeping},
        "rows": hashlib.blake2b(source.ids[train_rows].tobytes() + labelled.tobytes()).hexdigest()[:32],
        "annotations": hashlib.blake2b(annotated[records[read]].tobytes()).hexdigest()[:32],
        "vocabulary": setup.vocabulary.digest(),
        "tables": {r: [fingerprint_of(p), p.columns, p.values] for r, p in train_parts.items()},
        "text": None if text is None else [fingerprint_of(text), text.values],
    }
    trained = fingerprint(training)
    evaluated = {
        "training": trained,
        "rows": hashlib.blake2b(source.ids[test_rows].tobytes()).hexdigest()[:32],
        "annotations": hashlib.blake2b(test.digests().tobytes()).hexdigest()[:32],
        "tables": {role: [fingerprint_of(part), part.values] for role, part in test_parts.items()},
    }
    return Resolved(
        config,
        pictures,
        records,
        labelled,
        tested,
        dict(left_out),
        train_parts,
        test_parts,
        text,
        trained,
        fingerprint(evaluated),
    )


def failed_rows(setup: Setup, made: TablePlan, rows: np.ndarray, name: str) -> dict[int, str]:
    """``{position: "table: reason"}`` of the rows in which a table's cell is a recorded failure."""
    if made.table is None or made.state is None or not made.counts["failed"]:
        return {}
    source = setup.sources["images"]
    where = align(made.rows, rows, len(source.ids))
    inputs = None if made.inputs is None else made.inputs[where]
    found = made.table.failures(source.ids[rows], made.columns, inputs)
    return {row: f"{name}: {reason}" for (row, _), reason in found.items()}


def _columns(setup: Setup, plans: Mapping[str, TablePlan], name: str) -> tuple[str, ...]:
    if name not in plans:
        raise UserError(f"{setup.path}: student.tables: there is no table {name!r}; there are {', '.join(plans)}")
    return plans[name].columns


def part_of(
    setup: Setup,
    plans: Mapping[str, TablePlan],
    name: str,
    columns: Sequence[str] | None,
    rows: np.ndarray,
    source: str,
) -> Part:
    """The wanted cells of one table; every one has to be filled or a recorded failure."""
    have = _columns(setup, plans, name)
    made = plans[name]
    chosen = have if columns is None else tuple(columns)
    if missing := [column for column in chosen if column not in have]:
        raise UserError(f"{setup.path}: tables.{name}.columns: the student needs {missing[0]!r}; add it")
    mend = f"fill it with: {setup.mending_command()}"
    if made.table is None or made.state is None:
        raise UserError(f"table {name}: no cell is filled; {mend}")
    where = align(made.rows, rows, len(setup.sources[source].ids))
    if (where < 0).any():
        raise UserError(f"{setup.path}: tables.{name}.splits: does not cover the pictures that the student needs")
    positions = [have.index(column) for column in chosen]
    inputs = None
    if made.inputs is not None:
        inputs = made.inputs[where] if made.inputs.ndim == 1 else made.inputs[where][:, positions]
    empty = made.state.empty(where)[:, positions]
    if empty.any():
        raise UserError(
            f"table {name}: {int(empty.sum()):,} of {empty.size:,} cells that the student needs are empty; {mend}"
        )
    digests = made.table.value_digests(setup.sources[source].ids[rows], chosen, inputs)
    values = hashlib.blake2b(np.ascontiguousarray(digests).tobytes()).hexdigest()[:32]
    return Part(name, made, chosen, inputs, values)


def fingerprint_of(part: Part) -> str:
    assert part.made.table is not None
    return part.made.table.fingerprint


def stream_spec(setup: Setup, rows: np.ndarray, parts: Mapping[str, Part]) -> StreamSpec:
    """The plain description of what to stream: rows, tables, columns."""
    from storage.stream import StreamSpec, TableRef

    tables = {}
    for role, part in parts.items():
        assert part.made.table is not None
        tables[role] = TableRef(str(part.made.table.dir), part.columns, part.inputs, fingerprint_of(part))
    return StreamSpec(setup.sources["images"].ids[rows], tables, setup.mending_command())


def read_text(setup: Setup, part: Part) -> np.ndarray:
    """``float32 [H, D]`` embeddings of the vocabulary's prompts."""
    assert part.made.table is not None
    texts = setup.sources["texts"]
    place = {text: i for i, text in enumerate(texts.keys)}
    rows = texts.ids[[place[prompt] for prompt in setup.vocabulary.prompts()]]
    values = part.made.table.read(rows, part.columns)[part.columns[0]]
    if values.null_count:
        failed = setup.vocabulary.prompts()[values.is_null().index(True).as_py()]
        raise UserError(
            f"table {part.role}: the prompt {failed!r} is a recorded failure; see hoi-distill run --retry-failed"
        )
    return np.asarray(values.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(rows), -1)


def train_student(setup: Setup, stop: threading.Event | None = None) -> Path:
    """Train, evaluate and report what is not done yet; returns the run's folder.

    Every step leaves a marker that names what it was made from: a second call with nothing changed does nothing.
    """
    plans = plan(setup.nodes, setup.sources, setup.cache)
    resolved = resolve(setup, plans)
    run_dir = setup.config.runs / setup.config.name / resolved.fingerprint[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    trained = marker(run_dir / "done.json") == resolved.fingerprint
    evaluated = trained and marker(run_dir / "evaluated.json") == resolved.evaluation
    if trained and evaluated and (run_dir / "report.html").exists():
        print(
            f"Nothing to do: {run_dir} was trained and evaluated with these parameters, rows, labels and cached values "
            f"(fingerprint {resolved.fingerprint[:12]}).\nReport: {run_dir / 'report.html'}"
        )
        return run_dir
    read = [*resolved.train.values(), *resolved.test.values(), *([resolved.text] if resolved.text else [])]
    used = sorted({part.made.table.dir for part in read if part.made.table is not None})
    with setup.cache.lease("reader", used):
        if trained:
            print(f"Trained already (fingerprint {resolved.fingerprint[:12]}); evaluating.")
            student = None
        else:
            student = fit(setup, resolved, run_dir, stop)
        evaluate_run(setup, resolved, plans, run_dir, student)
    latest = run_dir.parent / "latest"
    draft = run_dir.parent / f".latest-{os.getpid()}"
    draft.symlink_to(run_dir.name)
    os.replace(draft, latest)
    print(f"Report: {run_dir / 'report.html'}")
    return run_dir


def fit(setup: Setup, resolved: Resolved, run_dir: Path, stop: threading.Event | None) -> Student:
    """Train and mark the run as trained."""
    from stages.student.train import train

    write_json(run_dir / "student.json", provenance(setup, resolved))
    setup.vocabulary.save(run_dir / "vocabulary.json")
    arm = resolved.config
    print(
        f"Training {setup.config.name} {resolved.fingerprint[:12]}: {int(resolved.labelled.sum()):,} labelled and "
        f"{int((~resolved.labelled).sum()):,} unlabelled pictures, soft labels: {arm.itm_on} ({arm.teacher}), seed {arm.seed}"
    )
    wall, cpu = time.monotonic(), time.process_time()
    student = train(
        resolved.config,
        training_set(setup, resolved),
        run_dir,
        text_embeddings=None if resolved.text is None else read_text(setup, resolved.text),
        identities={role: identity_of(setup, part) for role, part in resolved.test.items()},
        shared_dir=run_dir.parent.parent / "shared",
        stop=stop,
    )
    seconds = {"wall_seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    write_json(run_dir / "done.json", {"fingerprint": resolved.fingerprint, **seconds})
    print(f"Trained in {duration(seconds['wall_seconds'])} ({duration(seconds['cpu_seconds'])} of CPU).")
    return student


def identity_of(setup: Setup, part: Part) -> dict[str, Any]:
    """Who gave the student this table: enough to build the stage again, and to refuse another one."""
    table = setup.config.tables[part.role]
    return {
        "fingerprint": fingerprint_of(part),
        "record": fingerprint_record(part.made.node.stage),
        "stage": table.stage,
        "parameters": json.loads(json.dumps(table.parameters(), default=str)),
    }


def training_set(setup: Setup, resolved: Resolved) -> TrainingSet:
    from stages.student.prepare import TrainingSet
    from stages.student.source import CacheSource

    rows = setup.sources["images"].splits["train"][resolved.records]
    columns = resolved.train["itm"].columns if "itm" in resolved.train else ()
    return TrainingSet(
        source=CacheSource(stream_spec(setup, rows, resolved.train)),
        annotations=setup.dataset["train"],
        image=resolved.records,
        labelled=resolved.labelled,
        prompts=[prompt if prompt in columns else None for prompt in setup.vocabulary.prompts()],
        read=picture_reader([setup.sources["images"].uris[i] for i in rows]),
        identity=resolved.fingerprint,
    )


def test_set(setup: Setup, resolved: Resolved) -> TestSet:
    from stages.student.prepare import TestSet
    from stages.student.source import CacheSource

    rows = setup.sources["images"].splits["test"][resolved.tested]
    return TestSet(
        source=CacheSource(stream_spec(setup, rows, resolved.test)),
        image_ids=[str(name) for name in setup.dataset["test"].image_id[resolved.tested]],
        read=picture_reader([setup.sources["images"].uris[i] for i in rows]),
        identity=resolved.evaluation,
    )


def picture_reader(uris: Sequence[str]) -> Any:
    """``read(row) -> uint8 [H, W, 3]``, for students that look at the pictures themselves."""
    from stages.data.image import decode

    def read(row: int) -> np.ndarray:
        try:
            return np.asarray(decode(Path(uris[row]).read_bytes()))
        except InputFailure as failure:
            raise UserError(
                f"{uris[row]}: {failure}; remove its record, or add a features table, which records it"
            ) from None

    return read


def evaluate_run(
    setup: Setup, resolved: Resolved, plans: Mapping[str, TablePlan], run_dir: Path, student: Student | None
) -> None:
    """Predict the test split, evaluate, write the report, and mark the run as evaluated."""
    import torch

    from pipeline.reporting import write_run_report
    from stages.evaluate.detections import read_detections
    from stages.evaluate.evaluate import RARE_BELOW, evaluate_hico_det
    from stages.student.checkpoint import Student
    from stages.student.prepare import valid_classes
    from stages.student.train import predict_set

    if student is None:
        student = Student.from_pretrained(run_dir / "checkpoint")
    valid = torch.from_numpy(valid_classes(setup.vocabulary))
    predictions = predict_set(
        student, test_set(setup, resolved), run_dir, run_dir.parent.parent / "shared", valid, print
    )
    test, train = setup.dataset["test"], setup.dataset["train"]
    words = setup.vocabulary
    found = read_detections(predictions, test.image_id, np.asarray(words.hois), len(words.objects), len(words.verbs))
    labelled = train.hoi[: int(train.pair_offsets[resolved.pictures.labelled])]
    counts = np.bincount(labelled[labelled >= 0], minlength=len(words.hois))
    evaluation = evaluate_hico_det(test, found, counts < RARE_BELOW, counts)
    write_json(run_dir / "evaluation.json", evaluation.as_json())
    for setting, means in (("default", evaluation.default), ("known object", evaluation.known_object)):
        row = "  ".join(f"{name} {value:.2f}" for name, value in means.items() if value is not None)
        print(f"mAP, {setting}: {row}")
    write_run_report(setup, resolved, plans, run_dir, found, evaluation)
    write_json(run_dir / "evaluated.json", {"fingerprint": resolved.evaluation})


def provenance(setup: Setup, resolved: Resolved) -> dict[str, Any]:
    """What the report and the checkpoint say about where this run came from."""
    tables = {}
    for role, part in {**resolved.test, **resolved.train, **({"text": resolved.text} if resolved.text else {})}.items():
        assert part.made.table is not None
        tables[role] = {
            "dir": str(part.made.table.dir),
            "fingerprint": fingerprint_of(part),
            "record": part.made.table.record,
            "columns": len(part.columns),
        }
    return {
        "name": setup.config.name,
        "fingerprint": resolved.fingerprint,
        "student": asdict(resolved.config),
        "dataset": setup.config.dataset.model_dump(mode="json"),
        "pictures": {
            "labelled": int(resolved.labelled.sum()),
            "unlabelled": int((~resolved.labelled).sum()),
            "test": len(setup.dataset["test"].path),
        },
        "versions": {library: version(library) for library in LIBRARIES},
        "provenance": tables,
    }


def marker(path: Path) -> str | None:
    """The fingerprint that a finished step has left, None where it has not finished."""
    try:
        found: str = json.loads(path.read_text())["fingerprint"]
        return found
    except (FileNotFoundError, KeyError, json.JSONDecodeError):
        return None


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    draft = path.with_name(f".{path.name}-{os.getpid()}")
    canonical_json(value)  # NaN has no place in a record
    draft.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(draft, path)
