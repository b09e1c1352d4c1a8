"""BLIP's stages, keeping count: every forward notes the table and the cells in the file that ``HOI_DISTILL_AUDIT`` names.

They declare what the real ones declare, so they fill the same tables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from hoi_distill.stages.stage import Batch, Values
from hoi_distill.stages.teacher.blip.stages import BlipCaptions, BlipFeatures, BlipItm

STAGES = {
    "blip_features": "bench.audited_stages:Features",
    "blip_itm": "bench.audited_stages:Itm",
    "blip_captions": "bench.audited_stages:Captions",
}


def note(table: str, batch: Batch, columns: Sequence[str]) -> None:
    """One line ``table cells``; a single write to a file opened for appending is whole, whoever else writes."""
    if path := os.environ.get("HOI_DISTILL_AUDIT"):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{table} {batch.count * len(columns)}\n".encode())
        os.close(descriptor)


class Features(BlipFeatures):
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Count the cells, then compute them."""
        note(self.name, batch, columns)
        return super().compute(batch, columns, inputs)


class Itm(BlipItm):
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Count the cells, then compute them."""
        note(self.name, batch, columns)
        return super().compute(batch, columns, inputs)


class Captions(BlipCaptions):
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        """Count the cells, then compute them."""
        note(self.name, batch, columns)
        return super().compute(batch, columns, inputs)


def main() -> None:
    """``hoi-distill`` with these stages."""
    from hoi_distill.pipeline import cli
    from hoi_distill.pipeline.graph import registry

    registry.STAGES.update(STAGES)
    cli.main()


if __name__ == "__main__":
    main()
