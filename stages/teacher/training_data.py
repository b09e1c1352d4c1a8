"""What a teacher was trained on, as far as somebody has said: a page that quotes a teacher says it beside the quotation.

Three places are asked, in this order. The entry ``training_data`` at the head of the ``README.md`` in the checkpoint's folder, or
in the folder above it, is a phrase in anybody's own words. The entry ``datasets`` there is the model hubs' own. Last come the
papers of checkpoints that many use, by name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hoi_distill.stages.stage import Stage
from hoi_distill.stages.teacher.weights import Checkpoint

UNKNOWN = "data that its checkpoint does not name"
BLIP = "129 million image-text pairs, those of COCO and Visual Genome among them (BLIP, 2022)"
BLIP_2 = BLIP.replace("BLIP, 2022", "BLIP-2, 2023")
PUBLISHED = {
    r"hico|v[-_]?coco": "annotated interactions, as its name says",
    r"instructblip": f"{BLIP_2}, then instructions about images of public datasets, COCO's among them (InstructBLIP, 2023)",
    r"blip-?2.*coco": f"{BLIP_2}, then images and captions of COCO",
    r"blip-?2": BLIP_2,
    r"blip.*(coco|vqa|captioning)": f"{BLIP}, then images and texts of COCO",
    r"blip": BLIP,
    r"openai/clip|clip-vit-(base|large)-patch": "400 million image-text pairs of the web (CLIP, 2021)",
    r"siglip": "image-text pairs of the web (WebLI; SigLIP)",
    r"dinov2": "142 million images without texts (LVD-142M; DINOv2, 2023)",
    r"llava": "captioned images of the web, then instructions about images, COCO's among them (LLaVA)",
    r"detr-resnet": "the boxes of COCO 2017's training images",
}
"""By a pattern of the checkpoint's name, the first that fits."""


def training_data(stage: Stage) -> str:
    """A noun phrase; "" for a stage that runs no model of its own."""
    if getattr(stage, "teacher", None) is not None:
        return "annotated images of this dataset"
    checkpoint = getattr(getattr(stage, "speaker", stage), "checkpoint", None)
    if not isinstance(checkpoint, Checkpoint):
        runs_one = getattr(stage, "is_served", False) or getattr(stage, "layout", None) is not None
        return UNKNOWN if checkpoint is not None or runs_one else ""
    card = _card(Path(checkpoint.folder))
    if said := card.get("training_data"):
        return str(said)
    if named := card.get("datasets"):
        return ", ".join(map(str, named if isinstance(named, list) else [named]))
    given = (checkpoint.source, str(checkpoint.config.get("_name_or_path", "")))
    names = " ".join("/".join(Path(name).parts[-2:]) for name in given).lower()
    return next((told for pattern, told in PUBLISHED.items() if re.search(pattern, names)), UNKNOWN)


def _card(folder: Path) -> dict[str, Any]:
    """The head of a model card, {} where there is none. The folder above counts only for what no hub writes."""
    own, above = _head(folder / "README.md"), _head(folder.parent / "README.md")
    return own or {key: value for key, value in above.items() if key == "training_data"}


def _head(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
