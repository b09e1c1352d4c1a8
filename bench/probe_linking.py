"""What the two branches of LINK's linking decoder do to each other: short trainings on a drawn world, looked into.

Each arm is a LINK student without a teacher, with the keys of a configuration (``configs/pico_link.yaml``) and those of
``ARMS``. At every tenth of the training the probe looks at the last decoder layer on a fixed batch:

* ``gradient``: the norm of the loss's gradient at what a branch has seen, and the semantic branch's share of both;
* ``entropy``: of its attention, over the logarithm of the number of cells: 1 is an attention that looks nowhere;
* ``between``: how far what it has seen differs between the pairs of an image, over how far it differs at all.

Then mAP on the test images by the project's own evaluation: of the student as it is, and, as ``blind``, with one branch that
tells all pairs of an image the same, the mean of what it tells them. What is lost is what the network has of that branch
beyond the image as a whole. With the mean over a batch of images the branch tells nothing at all. On the crowd, swap accuracy
too. ``--blind`` does this alone, with trainings that are finished.

    python -m bench.probe_linking [--arms both spatial ...] [--seeds 0 1] [--steps 500] [--geometry] [--json FILE]
    python -m bench.probe_linking --setup configs/crowd_link.yaml --blind runs/crowd-link/RUN ...

The tables must be filled (``hoi-distill run configs/pico_link.yaml``). It writes only into ``runs/probe_linking``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

from hoi_distill.pipeline.config.schema import CrowdDataset
from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.training.binding import plan_all
from hoi_distill.pipeline.training.fit import test_set
from hoi_distill.pipeline.training.request import Resolved, resolve
from hoi_distill.pipeline.workspace import Workspace, prepare
from hoi_distill.stages.data.sampling.splits import RARE_BELOW
from hoi_distill.stages.evaluate.formats.parquet import read_detections
from hoi_distill.stages.evaluate.metrics.hico_det_evaluation import evaluate_hico_det
from hoi_distill.stages.evaluate.protocols.twins import evaluate_twins
from hoi_distill.stages.student.methods.link import train as link_train
from hoi_distill.stages.student.methods.link.linking_decoder import BRANCHES, DecoderContext, LinkingAttention
from hoi_distill.stages.student.methods.link.student import LinkStudent
from hoi_distill.stages.student.pairs.layers.attention import Padding
from hoi_distill.stages.student.pairs.training import TermLoss
from hoi_distill.stages.student.pretrained import load_student
from hoi_distill.stages.student.training.loop import Step

ARMS: dict[str, dict[str, Any]] = {
    "plain": {"linking_decoder": False},
    "both": {},
    "spatial": {"linking_branches": "spatial"},
    "semantic": {"linking_branches": "semantic"},
    "zero start": {"semantic_start": "zero"},
    "no map dropout": {"feature_dropout": 0.0},
    "spatial, no map dropout": {"linking_branches": "spatial", "feature_dropout": 0.0},
}
LOOKS = 10


@dataclass
class Looking:
    """Measures a decoder layer while a network answers.

    Attributes:
        entropies: of each attention, in the order in which they are computed.
        betweens: of what each branch has seen, in the same order.
        seen: what each branch has seen in the last batch, float ``[P, *]``.
    """

    entropies: list[float] = field(default_factory=list)
    betweens: list[float] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def means(self) -> list[dict[str, float]]:
        """Of each branch, over batches."""
        count = len(self.seen)
        columns = [(self.entropies[place::count], self.betweens[place::count]) for place in range(count)]
        return [{"entropy": fmean(entropy), "between": fmean(between)} for entropy, between in columns]


class RecordingPadding:
    """A :class:`Padding` that also measures the attention's entropy."""

    def __init__(self, padding: Padding, looking: Looking) -> None:
        self.padding, self.looking = padding, looking

    @torch.no_grad()
    def _entropy(self, query: Tensor, key: Tensor, heads: int) -> float:
        found = []
        for own, keys in zip(query.split(self.padding.counts), key.unbind(), strict=True):
            q, k = (each.unflatten(-1, (heads, -1)).transpose(0, 1) for each in (own, keys))
            log = (q @ k.mT / q.shape[-1] ** 0.5).log_softmax(-1)
            found.append(-(log.exp() * log).sum(-1).flatten() / torch.tensor(float(log.shape[-1])).log())
        return float(torch.cat(found).mean())

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """As :meth:`Padding.attend`, of pairs to the cells of a map."""
        self.looking.entropies.append(self._entropy(query, key, heads))
        return self.padding.attend(query, key, value, heads)


@contextmanager
def looked_at(layer: LinkingAttention, looking: Looking) -> Iterator[None]:
    """Within it, the layer's branches are measured."""
    real = layer.branches

    def branches(pairs: Tensor, context: DecoderContext) -> list[Tensor]:
        recording: Any = RecordingPadding(context.padding, looking)
        looking.seen = real(pairs, context._replace(padding=recording))
        looking.betweens += [between(seen.detach(), context.padding.counts) for seen in looking.seen]
        return looking.seen

    layer.branches = branches  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.branches


def between(seen: Tensor, counts: list[int]) -> float:
    """How far rows ``[P, *]`` differ within their images, over how far they differ at all; ``counts``: rows of each image."""
    within = torch.cat([part - part.mean(0, keepdim=True) for part in seen.split(counts)])
    return (within.square().mean() / seen.var(0, unbiased=False).mean()).sqrt().item()


def branches_of(layer: LinkingAttention) -> list[str]:
    """Names of the branches that a layer has."""
    return [name for name, there in zip(BRANCHES, (layer.has_spatial, layer.has_semantic), strict=True) if there]


def look(model: Any, batch: Any, loss: TermLoss) -> dict[str, Any]:
    """What the last decoder layer's branches do on a batch."""
    layer: nn.Module = model.decoder.layers[-1].look
    if not isinstance(layer, LinkingAttention):
        return {}
    looking = Looking()
    model.eval()
    with looked_at(layer, looking), torch.enable_grad():
        total, _ = loss(model, batch, Step(0))
        gradients = [each.norm().item() for each in torch.autograd.grad(total, looking.seen)]
    model.train()
    record: dict[str, Any] = {"loss": total.item()}
    for name, means, gradient in zip(branches_of(layer), looking.means(), gradients, strict=True):
        record[name] = {"gradient": gradient, **means}
    if len(gradients) > 1:
        record["semantic_share"] = gradients[1] / sum(gradients)
    return record


def blinded(folder: Path, workspace: Workspace, resolved: Resolved) -> dict[str, dict[str, Any]]:
    """Figures of a trained student, by branch, with that branch's answers averaged over the pairs of each image (``spatial``),
    or of all images of a batch (``spatial, all images``); {} without two branches."""
    found: dict[str, dict[str, Any]] = {}
    for place, whole in itertools.product(range(len(BRANCHES)), (False, True)):
        student, layers = linking_student(folder)
        if not layers or len(branches_of(layers[-1])) < len(BRANCHES):
            return {}
        for layer in layers:
            layer.branches = averaged(layer.branches, place, whole)  # type: ignore[method-assign]
        found[f"{BRANCHES[place]}, all images" if whole else BRANCHES[place]] = figures(student, workspace, resolved)
    return found


def linking_student(folder: Path) -> tuple[LinkStudent, list[LinkingAttention]]:
    """A trained student and its linking attentions, one a decoder layer."""
    student = load_student(folder / "checkpoint")
    assert isinstance(student, LinkStudent)
    return student, [layer.look for layer in student.model.decoder.layers if isinstance(layer.look, LinkingAttention)]


def figures(student: LinkStudent, workspace: Workspace, resolved: Resolved) -> dict[str, Any]:
    """mAP on the test images; on the crowd, swap accuracy of all questions and by verb."""
    test, labels = workspace.dataset["test"], resolved.labels
    with tempfile.TemporaryDirectory() as out:
        path = student.predict(test_set(workspace, resolved), Path(out), Path(out) / "shared", silent)
        detections = read_detections(path, test.image_id, workspace.vocabulary, object_optional=True)
        evaluation = evaluate_hico_det(test, detections, labels.before < RARE_BELOW, training=labels.seen())
        found: dict[str, Any] = {"full": evaluation.default["full"]}
        if isinstance(workspace.config.dataset, CrowdDataset):
            twins = evaluate_twins(workspace.config.dataset.root, path)
            verbs = {verb: each["swap_accuracy"] for verb, each in twins["verbs"].items()}
            found |= {"swap_accuracy": twins["swap_accuracy"], **verbs}
    return found


def finished(folder: Path, workspace: Workspace) -> dict[str, Any]:
    """Figures of a trained student as it is, what its last layer's branches do on the test images, and of the blinded."""
    student, layers = linking_student(folder)
    looking, resolved = Looking(), resolve(workspace, plan_all(workspace))
    with looked_at(layers[-1], looking) if layers else nullcontext():
        record = figures(student, workspace, resolved)
    looks = dict(zip(branches_of(layers[-1]), looking.means(), strict=True)) if layers else {}
    return {"folder": str(folder), **record, "looks": looks, "blind": blinded(folder, workspace, resolved)}


def silent(_line: str) -> None:
    """Say nothing."""


def averaged(branches: Callable[[Tensor, DecoderContext], list[Tensor]], place: int, whole: bool) -> Any:
    """A layer's branches, of which number ``place`` tells all pairs of an image the same; with ``whole`` those of the batch."""

    def changed(pairs: Tensor, context: DecoderContext) -> list[Tensor]:
        seen = branches(pairs, context)
        parts = [seen[place]] if whole else seen[place].split(context.padding.counts)
        seen[place] = torch.cat([part.mean(0, keepdim=True).expand_as(part) for part in parts])
        return seen

    return changed


def probe(setup: Path, arm: str, seed: int, steps: int, geometry: bool) -> dict[str, Any]:
    """Train one arm, looking into it, and evaluate it."""
    network = {"geometric_encoder": geometry, "pair_geometry": geometry, **ARMS[arm]}
    changes = {"kd": {}, "seed": seed, "steps": steps}
    overrides = [f"student.{key}={json.dumps(value)}" for key, value in changes.items()]
    overrides += [f"student.network.{key}={json.dumps(value)}" for key, value in network.items()]
    overrides.append("name=probe_linking")
    workspace = prepare(setup, overrides)
    looks: list[dict[str, Any]] = []
    real = TermLoss.__call__
    first: list[Any] = []

    def measured(self: TermLoss, model: nn.Module, batch: Any, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        first[:] = first or [batch]
        if step.number % max(1, steps // LOOKS) == 0 or step.number == steps - 1:
            state = torch.get_rng_state()
            looks.append({"step": step.number, **look(model, first[0], plain(self))})
            torch.set_rng_state(state)
        return real(self, model, batch, step)

    def plain(loss: TermLoss) -> Any:
        return lambda model, batch, step: real(loss, model, batch, step)

    began = time.process_time()
    link_train.TermLoss.__call__ = measured  # type: ignore[method-assign]
    try:
        folder = train_student(workspace, None)
    finally:
        link_train.TermLoss.__call__ = real  # type: ignore[method-assign]
    default = json.loads((folder / "evaluation.json").read_text())["default"]
    scores: dict[str, Any] = {key: default[key] for key in ("full", "rare", "non_rare")}
    scores["blind"] = blinded(folder, workspace, resolve(workspace, plan_all(workspace)))
    lines = (folder / "metrics.jsonl").read_text().splitlines()[-5:]
    trained = sum(json.loads(line)["loss"] for line in lines) / len(lines)
    return {"arm": arm, "seed": seed, **scores, "loss": trained, "cpu": time.process_time() - began, "looks": looks}


def main() -> None:
    """Probe the arms that are named, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", type=Path, default=Path("configs/pico_link.yaml"))
    parser.add_argument("--blind", nargs="+", type=Path, help="folders of finished trainings of the setup")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--geometry", action="store_true", help="with the geometric encoder: the rows A3 and A4")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.blind:
        found = (finished(folder, prepare(options.setup, ["student.kd={}"])) for folder in options.blind)
    else:
        each = itertools.product(options.seeds, options.arms)
        found = (probe(options.setup, arm, seed, options.steps, options.geometry) for seed, arm in each)
    tell(found, options.json)


def tell(found: Iterable[dict[str, Any]], file: Path | None) -> None:
    """Print each record once it is there, what it saw at each look on lines of its own, and write all so far to a file."""
    records: list[dict[str, Any]] = []
    for record in found:
        records.append(record)
        looks = record["looks"] if isinstance(record["looks"], list) else []
        print(json.dumps({key: value for key, value in record.items() if value is not looks}), flush=True)
        for seen in looks:
            print("   ", json.dumps(seen), flush=True)
        if file is not None:
            file.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
