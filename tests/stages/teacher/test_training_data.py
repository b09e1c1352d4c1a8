"""What a teacher was trained on is told as its model card has it, else as its paper does, else as unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from hoi_distill.stages.stage import Stage
from hoi_distill.stages.teacher.training_data import UNKNOWN, training_data
from hoi_distill.stages.teacher.weights import Checkpoint

PICO = Path(__file__).parents[3] / "stages/teacher/pico"


class Quoted:
    """A stage of a checkpoint."""

    def __init__(self, folder: Path, source: str = "", config: dict | None = None) -> None:
        self.checkpoint = Checkpoint(str(folder), source or str(folder), None, "Any", "", "", {}, config or {})


def told(*given, **more) -> str:
    stage: Stage = Quoted(*given, **more)  # type: ignore[assignment]
    return training_data(stage)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("itm", "64,000 captioned images"),
        ("caption", "64,000 captioned images"),
        ("clip", "32,000 captioned images"),
        ("detector", "96,000 scenes with their boxes"),
        ("detr", "208,000 scenes with their boxes"),
        ("long_tailed/itm", "as long-tailed as a student's"),
        ("../crowd/tower", "drawn by the renderer of the crowd"),
        ("../crowd/itm", "scenes with their interactions"),
    ],
)
def test_every_shipped_teacher_says_it(folder: str, said: str):
    assert said in told(PICO / folder)
    assert (PICO / folder / "config.json").exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("Salesforce/blip-itm-large-coco", "then images and texts of COCO"),
        ("Salesforce/blip2-itm-vit-g", "BLIP-2, 2023"),
        ("openai/clip-vit-large-patch14-336", "400 million image-text pairs"),
        ("google/siglip2-base-patch16-224", "WebLI"),
        ("facebook/detr-resnet-50", "COCO 2017's training images"),
        ("/models/detr-resnet-50-hico", "annotated interactions"),
        ("/models/hico/of/somebody", UNKNOWN),
        ("someone/else", UNKNOWN),
    ],
)
def test_a_known_checkpoint_is_told_by_its_name(tmp_path: Path, source: str, said: str):
    assert said in told(tmp_path, source)


def test_a_copy_is_known_by_the_name_that_its_configuration_keeps(tmp_path: Path):
    assert "CLIP, 2021" in told(tmp_path, config={"_name_or_path": "openai/clip-vit-base-patch16"})


def test_a_model_card_has_the_first_word(tmp_path: Path):
    folder = tmp_path / "blip"
    folder.mkdir()
    (tmp_path / "README.md").write_text("---\ndatasets: [of another model]\n---\n")
    assert "BLIP, 2022" in told(folder)
    (folder / "README.md").write_text("---\nlicense: mit\ndatasets:\n- coco\n- nlphuji/flickr30k\n---\n# A card\n")
    assert told(folder) == "coco, nlphuji/flickr30k"
    (folder / "README.md").write_text("---\ntraining_data: my own photographs\n---\n")
    assert told(folder) == "my own photographs"
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert "BLIP, 2022" in told(folder)


def test_a_stage_without_a_model_says_nothing():
    assert training_data(object()) == ""  # type: ignore[arg-type]
