"""What trained students of pairs have in common: how they predict a test set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from hoi_distill.stages.evaluate.formats.parquet import detections_table, detections_writer
from hoi_distill.stages.exported_graph import ExportedGraph
from hoi_distill.stages.student.data import Report, TestSet, valid_classes
from hoi_distill.stages.student.pairs.batches import MapReader, TableMaps
from hoi_distill.stages.student.pairs.config import PairsConfig
from hoi_distill.stages.student.pairs.exported import pairs_graph
from hoi_distill.stages.student.pairs.instances import ImageTable, image_of
from hoi_distill.stages.student.pairs.predict import detections_of, scored
from hoi_distill.stages.student.pairs.prepare import image_table
from hoi_distill.stages.student.pretrained import best_device
from hoi_distill.stages.student.student import Columns, Student
from hoi_distill.storage.digests import content_name
from hoi_distill.storage.errors import UserError


class StudentOfPairs(Student):
    """A trained network of pairs.

    Attributes:
        model: the network.
        config: the parameters it was trained with.
    """

    model: nn.Module
    config: PairsConfig

    @override
    def tables(self) -> Mapping[str, Columns]:
        """Detections, and feature maps of the view that is evaluated."""
        return {"detections": None, "features": self.config.views[:1]}

    def scorer(self) -> nn.Module:
        """The network as a module from :class:`~.regions.Regions` to interaction logits, float ``[P, H]``."""
        return self.model

    def valid(self) -> Tensor:
        """bool ``[objects, H]``: which interactions a detected object allows at prediction."""
        return torch.from_numpy(valid_classes(self.vocabulary))

    def prior_power(self) -> float:
        """Exponent of the detection scores."""
        return self.config.prior_power

    def top_k(self) -> int | None:
        """How many detections of each image are kept, the best; None: all."""
        return None

    def maps(self, test: TestSet, images: ImageTable, shared: Path) -> MapReader:  # noqa: ARG002 - a default
        """Reads the feature maps of a test set; ``shared`` is where variants of a study keep theirs."""
        return TableMaps.of(test.source, self.config.views[:1])

    @override
    def graph(self, maps: tuple[int, int, int] | None) -> ExportedGraph:
        if maps is None:
            raise UserError(f"students of method {self.method} with an image encoder of their own are not exported")
        network, valid, power = self.scorer(), self.valid(), self.prior_power()
        return pairs_graph(network, valid, self.config, prior_power=power, top_k=self.top_k(), channels=maps)

    @override
    def graph_inputs(self, detections: Any) -> dict[str, np.ndarray] | None:
        image = image_of(detections, self.config)
        if not len(image.pairs):
            return None
        return {
            "size": np.array([[image.width, image.height]], np.float32),
            "boxes": image.boxes,
            "labels": image.labels.astype(np.int64),
            "scores": image.scores,
            "pairs": image.pairs,
        }

    @override
    def predict(
        self,
        test: TestSet,
        run_dir: Path,
        shared: Path | None = None,
        report: Report = print,
        device: str | None = None,
    ) -> Path:
        """See :meth:`hoi_distill.stages.student.student.Student.predict`."""
        self.model.to(device or best_device())
        state = run_dir / "state" / f"test-{content_name(test.identity.encode(), 6)}"
        images = image_table(None if test.source.rows_digest is None else state, test.source, self.config)
        maps, model = self.maps(test, images, shared or run_dir.parent), self.scorer()
        run_dir.mkdir(parents=True, exist_ok=True)
        path, count = run_dir / "detections.parquet", 0
        with detections_writer(path) as writer:
            for each in scored(model, images, maps, self.valid(), self.config.predict_batch):
                found = detections_of(each, self.vocabulary.hois, prior_power=self.prior_power(), top_k=self.top_k())
                writer.write_table(detections_table(found, [test.image_ids[row] for row in each.rows]))
                count += len(found)
        report(f"predicted {count} triplets in {int(images.usable().sum())} of {len(images)} images")
        return path
