"""A matrix of a paper's table starts and ends on a dataset of HICO-DET's own layout, and writes ours beside the paper's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, BlipImageProcessorPil, BlipProcessor

from hoi_distill.pipeline.experiments import run_matrix
from hoi_distill.stages.teacher import weights
from tests.fixtures.hico_forms import WORDS, images, write_mat
from tests.fixtures.vlm_hoi_world import DETECTOR, MODEL

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


@pytest.fixture
def small(tiny_of, tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Makes a configuration of HICO-DET in the working folder, small; its dataset is there, and tiny checkpoints stand for the
    published ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "locate", lambda source, revision=None: tiny_of(source))
    write_mat(tmp_path / "hico")
    write_images(tmp_path / "hico")

    def made(name: str) -> Path:
        setup = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
        setup["dataset"]["root"] = str(tmp_path / "hico")
        setup["workers"] = {"executor": "inline", "allow_cpu": True}
        setup["tables"]["detections"] = {"stage": "ground_truth_boxes"}
        setup["tables"]["text"]["checkpoint"] = "Salesforce/blip-itm-base-coco"  # the tiny CLIP refuses one long prompt
        setup["tables"].get("pair_answers", {}).pop("max_pixels", None)
        for section in (setup["student"], *setup.get("pair_teachers", {}).values()):
            section |= {"network": NETWORK, "steps": 2, "warmup_steps": 1, "labelled_per_step": 2}
        Path("setup.yaml").write_text(yaml.safe_dump(setup))
        return Path("setup.yaml")

    return made


@pytest.mark.slow
def test_links_ablation_ends_on_the_layout_of_hico_det(small):
    """Its file as it is shipped, but for boxes, sizes, steps, seeds and the encoder of texts. A7's phase-1 teacher is trained
    on the way."""
    matrix = yaml.safe_load((ROOT / "configs/paper/link_ablation.yaml").read_text())
    matrix["tables"]["text"]["checkpoint"] = "Salesforce/blip-itm-base-coco"
    arms = {name: arm for name, arm in matrix["arms"].items() if name[:2] in ("A1", "A7")}
    arms["A7, + map KD"].pop("against")
    changed = {"setup": str(small("hico_det_link")), "seeds": [0], "arms": arms, "table": "table.md"}
    Path("matrix.yaml").write_text(yaml.safe_dump({**matrix, **changed}))

    run_matrix(Path("matrix.yaml"))
    table = Path("table.md").read_text()
    for row in ("| 36.1 |", "| 33.67 |", "| 42.92 |", "| 45.03 |"):
        assert row in table
    assert "by a third-party summary |" in table
    assert len(list(Path("docs/records/paper-link-ablation").glob("*.json"))) == 2


@pytest.mark.slow
def test_link_on_blip_2_and_on_florence_2_ends_on_the_layout_of_hico_det(small):
    """Their rows as they are shipped: maps are cached, a phase-1 teacher and a student are trained on them and evaluated."""
    matrix = yaml.safe_load((ROOT / "configs/paper/link_vlms_hico_det.yaml").read_text())
    arms = {name: matrix["arms"][name] for name in ("BLIP-2, A7", "BLIP-2, A7, its own texts", "Florence-2-B, A7")}
    arms["BLIP-2, A7"].pop("against")
    arms["Florence-2-B, A7"].pop("against")
    changed = {"setup": str(small("hico_det_link")), "seeds": [0], "arms": arms, "table": "table.md"}
    Path("matrix.yaml").write_text(yaml.safe_dump({**matrix, **changed}))

    run_matrix(Path("matrix.yaml"))
    table = Path("table.md").read_text()
    assert "| 43.72 |" in table
    assert "| 45.82 |" in table
    records = [json.loads(path.read_text()) for path in Path("docs/records/paper-link-vlms-hico-det").glob("*.json")]
    assert len(records) == 3


@pytest.mark.slow
def test_da_hois_result_stands_beside_a_student_of_answers_about_pairs(small):
    """Its file as it is shipped, but for boxes, sizes, steps, seeds and the encoder of texts."""
    matrix = yaml.safe_load((ROOT / "configs/paper/da_hoi_hico_det.yaml").read_text())
    arms = {name: arm for name, arm in matrix["arms"].items() if name.startswith("all labels")}
    changed = {"setup": str(small("hico_det_pair_answers")), "seeds": [0], "arms": arms, "table": "table.md"}
    Path("matrix.yaml").write_text(yaml.safe_dump({**matrix, **changed}))

    run_matrix(Path("matrix.yaml"))
    table = Path("table.md").read_text()
    for figure in ("| 44.58 |", "| 46.17 |", "| 44.08 |"):
        assert figure in table
    assert "by a third-party note |" in table


def write_blip(folder: Path, config: BlipConfig, tokenizer: BertTokenizer) -> Path:
    """A tiny BLIP with random weights."""
    torch.manual_seed(2)  # of other seeds the scores rank annotated verbs below the others, and the training refuses
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 64, "width": 64}), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_vlm_hois_table_1_ends_on_the_layout_of_hico_det(blip_config, tmp_path, monkeypatch):
    """Its file as it is shipped, but for sizes, epochs, seeds and initial weights: MUREN, and the term as it is printed."""
    monkeypatch.chdir(tmp_path)
    sentences = " ".join([*WORDS.prompts(), *WORDS.printed_prompts()]).lower().split()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    tokens = [*special, *sorted({part for word in sentences for part in [word, *word.split("-"), "-"]})]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    blip = write_blip(tmp_path / "blip", blip_config(vocab_size=len(tokenizer), initializer_range=0.1), tokenizer)
    monkeypatch.setattr(weights, "locate", lambda source, revision=None: blip)
    write_mat(tmp_path / "hico")
    write_images(tmp_path / "hico")

    setup = yaml.safe_load((ROOT / "configs/hico_det_vlm_hoi.yaml").read_text())
    setup["dataset"]["root"] = str(tmp_path / "hico")
    setup["workers"] = {"executor": "inline", "allow_cpu": True}
    setup["student"] |= {
        "start": DETECTOR, "decoders_from_detr": False, "allow_random_decoder": True, "model": MODEL, "epochs": 1,
        "drop_epoch": 1, "labelled_per_step": 2, "loader_workers": 0,
        "pictures": {"short_sides": [64], "max_side": 64, "test_short_side": 64, "crop": 0},
    }  # fmt: skip
    Path("setup.yaml").write_text(yaml.safe_dump(setup))
    matrix = yaml.safe_load((ROOT / "configs/paper/vlm_hoi_table1.yaml").read_text())
    arms = {name: matrix["arms"][name] for name in ("MUREN", "VLM-HOI, as printed")}
    changed = {"setup": "setup.yaml", "seeds": [0], "arms": arms, "table": "table.md"}
    Path("matrix.yaml").write_text(yaml.safe_dump({**matrix, **changed}))

    run_matrix(Path("matrix.yaml"))
    table = Path("table.md").read_text()
    for figure in ("| 32.87 |", "| 35.52 |", "| 34.25 |", "| 36.88 |"):
        assert figure in table
    assert "known object, full, here | known object, full, published" in table
