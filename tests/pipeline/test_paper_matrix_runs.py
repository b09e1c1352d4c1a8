"""A matrix of a paper's table starts and ends on a dataset of HICO-DET's own layout, and writes ours beside the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from hoi_distill.pipeline.experiments import run_matrix
from hoi_distill.stages.teacher import weights
from tests.fixtures.hico_forms import images, write_mat

ROOT = Path(__file__).parents[2]
NETWORK = {
    "width": 16, "pair_width": 24, "heads": 2, "ffn": 32, "pair_ffn": 32, "encoder_layers": 1, "decoder_layers": 1,
    "roi_size": 3,
}  # fmt: skip


def write_images(root: Path) -> None:
    for split in ("train", "test"):
        folder = root / f"images/{split}2015"
        folder.mkdir(parents=True)
        for number, image in enumerate(images(split)):
            colour = (60 * number, 40 * len(split), 90)
            Image.new("RGB", (image.width, image.height), colour).save(folder / image.file_name)


@pytest.mark.slow
def test_links_ablation_ends_on_the_layout_of_hico_det(tiny_of, tmp_path, monkeypatch):
    """Its file as it is shipped, but for boxes, sizes, steps, seeds and the encoder of texts. A7's phase-1 teacher is trained
    on the way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "locate", lambda source, revision=None: tiny_of(source))
    write_mat(tmp_path / "hico")
    write_images(tmp_path / "hico")

    setup = yaml.safe_load((ROOT / "configs/hico_det_link.yaml").read_text())
    setup["dataset"]["root"] = str(tmp_path / "hico")
    setup["workers"] = {"executor": "inline"}
    setup["tables"]["detections"] = {"stage": "ground_truth_boxes"}
    for section in (setup["student"], *setup["pair_teachers"].values()):
        section |= {"network": NETWORK, "steps": 2, "warmup_steps": 1, "labelled_per_step": 2}
    Path("setup.yaml").write_text(yaml.safe_dump(setup))
    matrix = yaml.safe_load((ROOT / "configs/paper/link_ablation.yaml").read_text())
    matrix["tables"]["text"]["checkpoint"] = "Salesforce/blip-itm-base-coco"  # the tiny CLIP refuses one long prompt
    arms = {name: arm for name, arm in matrix["arms"].items() if name[:2] in ("A1", "A7")}
    arms["A7, + map KD"].pop("against")
    changed = {"setup": "setup.yaml", "seeds": [0], "arms": arms, "table": "table.md"}
    Path("matrix.yaml").write_text(yaml.safe_dump({**matrix, **changed}))

    run_matrix(Path("matrix.yaml"))
    table = Path("table.md").read_text()
    for row in ("| 36.1 |", "| 33.67 |", "| 42.92 |", "| 45.03 |"):
        assert row in table
    assert "by a third-party summary |" in table
    assert len(list(Path("docs/records/paper-link-ablation").glob("*.json"))) == 2
