"""Before the first step: pairs of every picture, feature maps at hand, soft labels calibrated."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from stages.data.records import Annotations
from stages.data.vocabulary import Vocabulary
from stages.student.batches import MapReader, TableMaps
from stages.student.config import PairsConfig, StudentConfig
from stages.student.distill import Platt, SoftLabels, fit_platt, match_log_odds, shuffled_pictures
from stages.student.pictures import NO_ANNOTATIONS, Picture, PictureTable, picture_of, with_annotations
from stages.student.region_cnn import LiveMaps, ReadPicture, RegionCNN, RegionCNNConfig, StoredMaps, shared_encoder
from stages.student.source import Source, in_order
from storage.errors import UserError

Report = Callable[[str], None]
NOT_ASKED = np.full(2, np.nan, np.float16)
"""The matching logits of a cell that its row does not want (``itc_top_k``)."""


@dataclass(frozen=True)
class TrainingSet:
    """N training pictures, some of them labelled.

    Attributes:
        source: their tables: ``detections``, ``features`` (teacher's maps), ``itm`` (soft labels from ITM).
        annotations: records of all of them; those of unlabelled pictures are read by the oracle control only.
        image: int64 ``[N]``, each row's record among the annotations.
        labelled: bool ``[N]``.
        prompts: for each of the H interactions its column of the ``itm`` table, or None where it was not asked for.
        read: uint8 ``[height, width, 3]`` of a row; needed by the ``region_cnn`` encoder only.
        identity: names the rows, labels and values, so that a state saved for others is not resumed.
        values: by table, names the cells read of it: what depends on some tables alone can be shared by that name.
        unseen: bool ``[H]``, the interactions that training may not see (zero-shot); they come back at prediction.
        dropped: annotations of the same records that are set aside (few-shot): what they name is neither positive nor
            negative in training.
    """

    source: Source
    annotations: Annotations
    image: np.ndarray
    labelled: np.ndarray
    prompts: Sequence[str | None]
    read: ReadPicture | None = None
    identity: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    unseen: np.ndarray | None = None
    dropped: Annotations | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        assert self.annotations.vocabulary is not None
        return self.annotations.vocabulary

    def true_pairs(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Annotated human and object boxes (float32 ``[G, 4]``) and interactions (int16 ``[G]``) of a row; what is of no class
        (V-COCO's verbs without an object, for one) is not among them."""
        return _pairs(self.annotations, int(self.image[row]))

    def dropped_pairs(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same of the annotations that are set aside."""
        return NO_ANNOTATIONS if self.dropped is None else _pairs(self.dropped, int(self.image[row]))

    @property
    def seen(self) -> np.ndarray:
        """bool ``[H]``, the interactions that training may see."""
        return np.ones(len(self.vocabulary.hois), bool) if self.unseen is None else ~self.unseen

    def valid(self) -> np.ndarray:
        """bool ``[objects, H]``: which interactions an object class allows in training, where none is unseen."""
        return valid_classes(self.vocabulary) & self.seen

    def present(self, row: int) -> np.ndarray:
        """bool ``[H]``: the interactions that the annotations find in the picture."""
        present = np.zeros(len(self.vocabulary.hois), bool)
        if self.annotations.image_hois is not None:
            present |= self.annotations.image_hois[self.image[row]]
        present[self.true_pairs(row)[2]] = True
        return present


@dataclass(frozen=True)
class TestSet:
    """M pictures to predict: their tables (``detections``, ``features``), names, and pictures as in a training set.
    ``identity`` names rows and values."""

    source: Source
    image_ids: Sequence[str]
    read: ReadPicture | None = None
    identity: str = ""


def _pairs(records: Annotations, image: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own = records.pairs(image)
    classes = records.hoi[own]
    known = classes >= 0
    return records.human_box[own][known], records.object_box[own][known], classes[known]


def picture_table(
    folder: Path, source: Source, config: PairsConfig, labelled: TrainingSet | None = None
) -> PictureTable:
    """Filter every picture's detections and, in the labelled ones, associate the annotated pairs; once."""

    def pictures() -> Iterator[tuple[int, Picture]]:
        for sample in in_order(source.open({"detections": ("value",)})):
            row = sample["row"]
            picture = picture_of(sample["detections"]["value"], config)
            if labelled is not None and labelled.labelled[row]:
                dropped = labelled.dropped_pairs(row)
                picture = with_annotations(picture, *labelled.true_pairs(row), config.association_iou, dropped)
            yield row, picture

    return PictureTable.open_or_build(folder, len(source), pictures())


def training_pictures(folder: Path, data: TrainingSet, config: PairsConfig) -> PictureTable:
    """The picture table of a training set. Raises UserError when it holds nothing to train on."""
    pictures = picture_table(folder, data.source, config, data)
    if not (pictures.usable() & data.labelled).any():
        raise UserError("nothing to train on: no labelled picture has a person and another instance detected")
    return pictures


def valid_classes(vocabulary: Vocabulary) -> np.ndarray:
    """bool ``[objects, H]``: which interactions an object class allows."""
    valid = np.zeros((len(vocabulary.objects), len(vocabulary.hois)), bool)
    valid[vocabulary.hois[:, 1], np.arange(len(vocabulary.hois))] = True
    return valid


def map_reader(
    source: Source,
    pictures: PictureTable,
    views: Sequence[str],
    cnn: RegionCNN | None,
    shared: Path,
    read: ReadPicture | None,
) -> MapReader:
    """The teacher's cached maps, or with ``cnn`` that network's, kept under ``shared`` where rows have a name."""
    if cnn is None:
        return TableMaps({view: source.open({"features": (view,)}) for view in views})
    if read is None:
        raise UserError("encoder: region_cnn needs the pictures themselves")
    if source.rows_digest is None:
        return LiveMaps(cnn, views, read)
    usable = hashlib.blake2b(pictures.usable().tobytes(), digest_size=4).hexdigest()
    folder = shared / f"region-maps-{cnn.digest()}-{source.rows_digest}-{usable}"
    return StoredMaps(folder, cnn, views, pictures.usable(), read)


def own_encoder(
    shared: Path, data: TrainingSet, pictures: PictureTable, cnn: RegionCNNConfig, report: Report
) -> RegionCNN:
    """The student's own encoder, kept under ``shared`` in a folder named by everything that it depends on."""
    if data.read is None:
        raise UserError("encoder: region_cnn needs the pictures themselves")
    record = {**asdict(cnn), "rows": data.source.rows_digest, "pictures": pictures.digest()}
    name = hashlib.blake2b(json.dumps(record).encode(), digest_size=6).hexdigest()
    return shared_encoder(shared / f"region-cnn-{name}", cnn, pictures, data.read, report)


def distils(config: StudentConfig) -> bool:
    """Whether soft labels enter the training at all. With weight 0 no unlabelled picture is looked at either."""
    return config.itm_on != "none" and config.itm_weight > 0


def soft_labels(folder: Path, data: TrainingSet, pictures: PictureTable, config: StudentConfig) -> SoftLabels | None:
    """The soft labels of the configured teacher, or None where nothing is distilled.

    For the self-training control ``folder/self.npy`` has been written before, see :mod:`stages.student.train`.
    """
    if not distils(config):
        return None
    distilled = {"labelled": data.labelled, "unlabelled": ~data.labelled, "both": np.ones_like(data.labelled)}[
        config.itm_on
    ]
    distilled = distilled & pictures.usable()
    source = np.arange(len(pictures))
    if config.teacher == "self":
        return SoftLabels(np.load(folder / "self.npy", mmap_mode="r"), source, distilled)
    if config.teacher == "oracle":
        rows = ((row, data.present(row).astype(np.float32)) for row in np.flatnonzero(distilled).tolist())
        return SoftLabels(_stored(folder / "oracle.npy", data, rows), source, distilled)
    log_odds = _match_table(folder / "itm.npy", data)
    if config.teacher == "shuffled":
        rows_ = np.flatnonzero(distilled)
        source[rows_] = shuffled_pictures(rows_, config.seed)
    return SoftLabels(log_odds, source, distilled, calibrate(log_odds, data, pictures))


def calibrate(log_odds: np.ndarray, data: TrainingSet, pictures: PictureTable) -> Platt:
    """Platt scaling on the labelled pictures, over the interactions that their pairs allow and that were asked for."""
    rows = np.flatnonzero(data.labelled & pictures.usable())
    if len(rows) == 0:
        raise UserError("labelled: calibrating soft labels needs at least one labelled picture with a pair")
    candidate = pictures.shown_objects(len(data.vocabulary.objects))[rows] @ data.valid()
    values = np.asarray(log_odds[rows])
    candidate &= np.isfinite(values)
    present = np.stack([data.present(row) for row in rows.tolist()])
    for place, row in enumerate(rows.tolist() if data.dropped is not None else []):
        dropped = data.dropped_pairs(row)[2]
        candidate[place, dropped] &= present[place, dropped]
    return fit_platt(values[candidate], present[candidate])


def _match_table(path: Path, data: TrainingSet) -> np.ndarray:
    asked = [(hoi, prompt) for hoi, prompt in enumerate(data.prompts) if prompt is not None]
    hois = [hoi for hoi, _ in asked]

    def rows() -> Iterator[tuple[int, np.ndarray]]:
        for sample in in_order(data.source.open({"itm": tuple(prompt for _, prompt in asked)})):
            values = np.full(len(data.prompts), np.nan, np.float32)
            logits = [sample["itm"][prompt] for _, prompt in asked]
            values[hois] = match_log_odds(np.array([NOT_ASKED if pair is None else pair for pair in logits]))
            yield sample["row"], values

    return _stored(path, data, rows())


def _stored(path: Path, data: TrainingSet, rows: Iterator[tuple[int, np.ndarray]]) -> np.ndarray:
    """float32 ``[N, H]`` in ``path``, memory-mapped; NaN for rows that are not given."""
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        table = np.lib.format.open_memmap(draft, "w+", np.float32, (len(data.source), len(data.prompts)))
        table[:] = np.nan
        for row, values in rows:
            table[row] = values
        table.flush()
        os.replace(draft, path)
    return np.load(path, mmap_mode="r")
