"""What using a student costs beside its networks: CPU milliseconds an image, on one thread.

The bare loop decodes, prepares, and runs detector, encoder and student on batches of one size, and keeps nothing. Beside it
stand ``HOIDetector.stream`` of the same files, ``predict --no-draw`` of them, and of a video of the same images; the video's
bare loop reads frames with PyAV. Each figure is a slope between few and many images, so that loading is in none. What is added
does not depend on the networks' size. Those of the pico world are the smallest there are.

    python -m bench.bench_use [--checkpoint CHECKPOINT] [--json] [--images N] [--rounds N]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hoi_distill.pipeline.detector import HOIDetector, load_image
from hoi_distill.pipeline.export import Parts
from hoi_distill.pipeline.prediction import More, predict_images
from hoi_distill.pipeline.prediction_outputs import Wanted
from hoi_distill.pipeline.video import Source, opened
from hoi_distill.stages.data.pico.render import render_scene
from hoi_distill.stages.stage import Batch
from hoi_distill.stages.student.pairs.instances import gather, image_of
from hoi_distill.stages.student.pairs.predict import Scored, detections_of
from hoi_distill.stages.student.pairs.regions import candidates_of

TOGETHER = 16
"""Images of a batch, and of the smaller of the two numbers of images."""
RATE = 10
"""Frames per second of the video."""


def bare(parts: Parts, images: Iterator[Image.Image]) -> None:
    """Run the networks on images, :data:`TOGETHER` at a time, and keep nothing."""
    student: Any = parts.student
    (_, detector), (_, encoder) = parts.stages["detections"], parts.stages["features"]
    scorer, valid = student.scorer(), student.valid()
    while some := list(islice(images, TOGETHER)):
        batch = Batch(np.zeros(len(some), "V16"), [""] * len(some), len(some), some)
        cells: Any = detector.compute(batch, ("value",), {})["value"]
        maps: Any = encoder.compute(batch, ("original",), {})["original"]
        found = [image_of(cell, student.config) for cell in cells.to_pylist()]
        kept = [row for row, image in enumerate(found) if len(image.pairs)]
        if not kept:
            continue
        regions = gather([found[row] for row in kept], maps[kept].half())
        with torch.inference_mode():
            candidates = candidates_of(regions, valid)
            logit = scorer(regions)[candidates.pair, candidates.hoi]
        scored = Scored(np.array(kept), regions, candidates, logit)
        detections_of(scored, student.vocabulary.hois, prior_power=student.prior_power())


def cpu_ms(work: Callable[[int], object], count: int) -> float:
    """CPU milliseconds of this process for so many images."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = time.process_time()
        work(count)
        return 1000 * (time.process_time() - started)


def film(path: Path, images: Sequence[Image.Image]) -> Path:
    """A video of the images."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *images[0].size, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")))
        container.mux(stream.encode())
    return path


def frames(path: Path) -> Iterator[Image.Image]:
    """The frames of a video."""
    with opened(Source(str(path))) as video:
        yield from (image for _, image in video.frames(None))


def measure(checkpoint: Path, images: int, rounds: int, root: Path) -> dict[str, float]:
    """Medians of the rounds, by what was done, and over the bare loops."""
    folder = root / "images"
    folder.mkdir()
    drawn = [Image.fromarray(render_scene(2_000_000_000 + number).image).resize((640, 480)) for number in range(images)]
    files = [folder / f"{number:04d}.jpg" for number in range(images)]
    for image, file in zip(drawn, files, strict=True):
        image.save(file, quality=90)
    clip, out = film(root / "clip.avi", drawn), root / "out"
    detector = HOIDetector.from_pretrained(checkpoint, device="cpu")
    parts = Parts.of(checkpoint, detector.student, None)

    def predicted(given: Sequence[Path], seconds: float | None = None, drawings: bool = False) -> None:
        more = More(wanted=Wanted(drawings=drawings), seconds=seconds)
        predict_images(checkpoint, given, out, threshold=0.3, device="cpu", more=more)

    works: dict[str, Callable[[int], object]] = {
        "bare": lambda count: bare(parts, (load_image(file) for file in files[:count])),
        "stream": lambda count: [len(result) for result in detector.stream(files[:count], TOGETHER)],
        "files": lambda count: predicted(files[:count]),
        "bare_video": lambda count: bare(parts, islice(frames(clip), count)),
        "video": lambda count: predicted([clip], count / RATE),
        "video_with_boxes": lambda count: predicted([clip], count / RATE, drawings=True),
    }
    figures: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            few, many = cpu_ms(work, TOGETHER), cpu_ms(work, images)
            if turn:  # the first opens the stages
                figures[name].append((many - few) / (images - TOGETHER))
    median = {name: statistics.median(each) for name, each in figures.items()}
    over = {name: median[name] / median["bare"] for name in ("stream", "files")}
    over |= {name: median[name] / median["bare_video"] for name in ("video", "video_with_boxes")}
    return {
        **{f"{name}_ms": round(each, 2) for name, each in median.items()},
        **{f"{name}_over_bare": round(each, 3) for name, each in over.items()},
    }


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--checkpoint", type=Path, default=Path("runs/pico/latest/checkpoint"))
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--images", type=int, default=96)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        found = measure(given.checkpoint, given.images, given.rounds, Path(root))
    print(json.dumps(found) if given.json else "\n".join(f"{name:28s} {value:8.3f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
