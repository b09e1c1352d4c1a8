"""What a network starts from, weight by weight; what a source lacks is told or refused, never drawn in silence."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hoi_distill.stages.checkpoints import detr_pth
from hoi_distill.stages.checkpoints import detr_state_dict as detr_names
from hoi_distill.stages.checkpoints import timm_state_dict as timm_backbone
from hoi_distill.stages.data.coco import COCO_OBJECTS
from hoi_distill.stages.student.methods.vlm_hoi import muren_names
from hoi_distill.stages.student.methods.vlm_hoi.initial_weights import initialise
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren
from hoi_distill.stages.student.methods.vlm_hoi.relation import BRANCHES
from hoi_distill.storage.errors import UserError
from tests.fixtures.original_detr import DECODERS, ENCODERS, FFN, QUERIES, Trap
from tests.fixtures.original_detr import D as WIDTH
from tests.fixtures.original_detr import original as original_detr
from tests.fixtures.tiny_detectors import timm_names, tiny_detector
from tests.fixtures.tiny_muren import K, V, tiny_config, tiny_muren

PICO = Path(__file__).parents[5] / "stages/teacher/pico/detector"
SHAPE = {"d_model": 32, "heads": 4, "ffn": 32, "encoder_layers": 1, "decoder_layers": 2, "queries": 10}


def state(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import DetrForObjectDetection

    return DetrForObjectDetection.from_pretrained(folder).state_dict()


@pytest.fixture(scope="module")
def detr(tmp_path_factory) -> Path:
    return tiny_detector("detr", tmp_path_factory.mktemp("detr"), timm_backbone.resnet("resnet18", [4]))


def beside(detr: Path, **changes) -> Muren:
    """A network that fits the tiny DETR, 80 objects."""
    backbone = json.loads((detr / "config.json").read_text())["backbone_config"]
    return tiny_muren(**{"backbone": backbone, "objects": 80, **SHAPE, **changes})


def test_backbone_projection_and_encoder_come_from_a_detr(detr):
    model = beside(detr)
    report = initialise(model, detr, allow_random_decoder=True)
    theirs, own = state(detr), model.state_dict()
    parts = ("backbone.", "input_projection.", "encoder.")
    assert set(report.found) == {key for key in own if key.startswith(parts) and not key.endswith("batches_tracked")}
    assert all(torch.equal(own[key], theirs[f"model.{key}"]) for key in report.found)
    assert set(report.missing) == {key for key in own if not key.startswith(parts)}
    assert set(report.unexpected) == {key for key in theirs if not key.removeprefix("model.").startswith(parts)}
    assert "missing: " in str(report)
    assert f"decoders {len([key for key in report.missing if key.startswith('decoders.')])}" in str(report)


def test_a_random_decoder_must_be_meant(detr):
    model = beside(detr)
    before = {key: each.clone() for key, each in model.state_dict().items()}
    with pytest.raises(UserError, match=r"weights of the decoders .* allow_random_decoder: true .*decoders_from_detr"):
        initialise(model, detr)
    assert all(torch.equal(each, before[key]) for key, each in model.state_dict().items())
    with pytest.raises(UserError, match=r": 78 weights of the decoders"):
        initialise(beside(detr, decoder_layers=3), detr, decoders_from_detr=True)


def test_nothing_frozen_stays_random(detr):
    with pytest.raises(
        UserError, match=r"no start given: \d+ frozen weights .*frozen_stages: 0 and frozen_batch_norm: false"
    ):
        initialise(beside(detr), None, allow_random_decoder=True)
    free = beside(detr, frozen_stages=0, frozen_batch_norm=False)
    assert initialise(free, None, allow_random_decoder=True).found == ()


@pytest.mark.parametrize("missing_object", [False, True])
def test_the_decoders_can_start_from_detrs(detr, missing_object):
    model = beside(detr, missing_object=missing_object)
    drawn = model.object_classifier.weight.detach().clone()
    report = initialise(model, detr, decoders_from_detr=True)
    theirs, own = state(detr), model.state_dict()
    for branch in BRANCHES:
        for key in [key for key in own if key.startswith(f"decoders.{branch}.")]:
            name = key.replace(f"decoders.{branch}", "model.decoder.layers")
            assert torch.equal(own[key], theirs[name]), key
        assert torch.equal(own[f"norms.{branch}.weight"], theirs["model.decoder.layernorm.weight"])
        assert torch.equal(own[f"queries.{branch}"], theirs["model.query_position_embeddings.weight"][:10])
    for head in ("human_box", "object_box"):
        assert torch.equal(own[f"{head}.layers.2.bias"], theirs["bbox_predictor.layers.2.bias"])
    rows, source = own["object_classifier.weight"], theirs["class_labels_classifier.weight"]
    assert torch.equal(rows[COCO_OBJECTS.index("toothbrush")], source[90])
    assert torch.equal(rows[0], source[1])
    assert torch.equal(rows[-1], source[91])
    if missing_object:
        assert torch.equal(rows[80], drawn[80])
    assert {key.split(".")[0] for key in report.missing} == {"mure", "fusions", "verb_classifier"}
    assert (tuple(sorted(report.found + report.missing))) == tuple(k for k in sorted(own) if "batches_tracked" not in k)


@pytest.mark.parametrize("layout", ["hub", "transformers_5"])
def test_hub_layouts_around_timm_load_the_same(detr, tmp_path, layout):
    """``facebook/detr-resnet-50`` is one: timm's names in ``conv_encoder``."""
    weights = load_file(detr / "model.safetensors")
    prefix = "model.backbone.conv_encoder.model."
    timms = {prefix + timm_backbone.renamed(key): prefix + key for key in timm_names((2, 2, 2, 2), 2)}
    save_file(
        {timms.get(key, key): each for key, each in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    changes = {
        "hub": {"use_timm_backbone": True, "backbone": "resnet18", "backbone_config": None},
        "transformers_5": {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18"}},
    }[layout]
    config = json.loads((detr / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    one, other = beside(detr), beside(detr)
    assert initialise(one, detr, decoders_from_detr=True) == initialise(other, tmp_path, decoders_from_detr=True)
    assert all(torch.equal(each, other.state_dict()[key]) for key, each in one.state_dict().items())


def test_the_original_pth_and_its_converted_folder_are_one_start(tmp_path):
    weights = original_detr()
    torch.save({"model": weights, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "detr.pth")
    back = detr_names.original(detr_names.translated(weights, "x"))
    assert set(back) == set(weights)
    assert all(torch.equal(back[key], each) for key, each in weights.items())
    detr_pth.convert(tmp_path / "detr.pth", tmp_path / "folder")
    settings = {
        "backbone": timm_backbone.resnet("resnet50", [4]), "objects": 80, "d_model": WIDTH, "heads": 8, "ffn": FFN,
        "encoder_layers": ENCODERS, "decoder_layers": DECODERS, "queries": QUERIES,
    }  # fmt: skip
    one, other = tiny_muren(**settings), tiny_muren(**settings)
    reports = [
        initialise(model, tmp_path / name, decoders_from_detr=True)
        for model, name in ((one, "detr.pth"), (other, "folder"))
    ]
    assert reports[0].found == reports[1].found
    assert reports[0].missing == reports[1].missing
    assert all(torch.equal(each, other.state_dict()[key]) for key, each in one.state_dict().items())
    assert {key.split(".")[0] for key in reports[0].missing} == {"mure", "fusions", "verb_classifier"}


def pico_settings() -> dict:
    backbone = json.loads((PICO / "config.json").read_text())["backbone_config"]
    return {"backbone": backbone, "d_model": 96, "heads": 4, "ffn": 192, "encoder_layers": 1}


@pytest.mark.filterwarnings("ignore:You'd better set embed_dim")
@pytest.mark.parametrize("last", [4, 3])
def test_the_pico_detectors_backbone_gives_its_maps(last):
    """Projected too: the detector's convolution and batch norm are one convolution here. ``last``: stage 3 is stride 16."""
    from transformers import RTDetrForObjectDetection

    settings = pico_settings()
    if last == 3:
        cut = {key: settings["backbone"][key][:3] for key in ("depths", "hidden_sizes")}
        settings["backbone"] = {**settings["backbone"], **cut, "out_features": ["stage3"], "out_indices": [3],
                                "stage_names": ["stem", "stage1", "stage2", "stage3"]}  # fmt: skip
    model = tiny_muren(**settings)
    report = initialise(model, PICO, allow_random_decoder=True)
    assert not [key for key in report.missing if key.startswith(("backbone.", "input_projection.", "encoder."))]
    assert not report.mismatched
    detector = RTDetrForObjectDetection.from_pretrained(PICO).eval().model
    pixels = torch.rand(2, 3, 128, 128)
    with torch.inference_mode():
        theirs = detector.backbone(pixels, torch.ones(2, 128, 128))[last - 2][0]
        own = model.backbone(pixels)
        torch.testing.assert_close(own, theirs)
        torch.testing.assert_close(
            model.input_projection(own), detector.encoder_input_proj[last - 2](theirs), atol=1e-4, rtol=1e-4
        )
    assert torch.equal(
        model.encoder.layers[0].self_attn.q_proj.weight, detector.encoder.aifi[0].layers[0].self_attn.q_proj.weight
    )


def test_what_does_not_fit_is_told_and_heads_are_checked():
    narrow = tiny_muren(**pico_settings() | {"d_model": 64})
    report = initialise(narrow, PICO, allow_random_decoder=True)
    assert all(key.startswith("backbone.") for key in report.found)
    assert "input_projection.weight: [96, 192, 1, 1] against [64, 192, 1, 1]" in report.mismatched
    assert "input_projection.weight" in report.missing
    with pytest.raises(UserError, match=r"heads: 8, but .* has 4 a layer; set heads: 4"):
        initialise(tiny_muren(**pico_settings() | {"heads": 8}), PICO, allow_random_decoder=True)


RESNET18 = timm_backbone.resnet("resnet18", [4])


def released(config, *, decoders: dict[str, str], norms: dict[str, str]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the released code's transformer parts that MUREN and CDN share, from torch's own modules."""
    d, ffn = config.d_model, config.ffn
    yield from layers("transformer.encoder.layers", config.encoder_layers, d, ffn, ("self_attn",), (1, 2))
    for prefix in decoders.values():
        yield from layers(prefix, config.decoder_layers, d, ffn, ("self_attn", "multihead_attn"), (1, 2, 3))
    for prefix in norms.values():
        yield from named(prefix, nn.LayerNorm(d))
    backbone = tiny_muren(backbone=RESNET18).backbone.model.state_dict()
    for key in timm_names((2, 2, 2, 2), 2):
        if not key.endswith("num_batches_tracked"):
            yield f"backbone.0.body.{key}", tuple(backbone[timm_backbone.renamed(key)].shape)
    yield from named("input_proj", nn.Conv2d(512, d, 1))
    yield from named("obj_class_embed", nn.Linear(d, config.no_object + 1))
    yield from named("verb_class_embed", nn.Linear(d, config.verbs))
    for head in ("sub_bbox_embed", "obj_bbox_embed"):
        for index, outputs in enumerate((d, d, 4)):
            yield from named(f"{head}.layers.{index}", nn.Linear(d, outputs))


def named(prefix: str, module: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key, tensor in module.state_dict().items():
        yield f"{prefix}.{key}", tuple(tensor.shape)


def layers(prefix, count, d, ffn, attentions, norms) -> Iterator[tuple[str, tuple[int, ...]]]:
    for index in range(count) if count is not None else [None]:
        start = prefix if index is None else f"{prefix}.{index}"
        for attention in attentions:
            yield from named(f"{start}.{attention}", nn.MultiheadAttention(d, 1))
        yield from named(f"{start}.linear1", nn.Linear(d, ffn))
        yield from named(f"{start}.linear2", nn.Linear(ffn, d))
        for norm in norms:
            yield from named(f"{start}.norm{norm}", nn.LayerNorm(d))


def muren_names_and_shapes(config) -> dict[str, tuple[int, ...]]:
    d, ffn, short = config.d_model, config.ffn, ("human", "obj", "rel")
    mlp = nn.Sequential(nn.Linear(2 * d, d), nn.ReLU(), nn.Linear(d, d), nn.LayerNorm(d))
    found = dict(
        released(
            config,
            decoders={name: f"transformer.decoder.layers_{name}" for name in short},
            norms={name: f"transformer.decoder.norm_{name}" for name in short},
        )
    )
    mure = "transformer.decoder.MURE"
    found |= named(f"{mure}.ternary", nn.Sequential(nn.Linear(3 * d, d), nn.ReLU(), nn.Linear(d, d), nn.LayerNorm(d)))
    for name in ("human_obj", "human_rel", "obj_rel"):
        found |= named(f"{mure}.{name}", mlp)
    for name in ("unary_self", "pairwise_self"):
        found |= layers(f"{mure}.{name}", None, d, ffn, ("self_attn",), (1, 2))
    for name in ("unary_cross", "pairwise_cross", "mc_gen"):
        found |= layers(f"{mure}.{name}", None, d, ffn, ("multihead_attn",), (2, 3))
    for name in short:
        found[f"query_embed_{name}.weight"] = (config.queries, d)
        for number in ("",) if config.shared_fusion else [f"{index}." for index in range(config.decoder_layers)]:
            gate = nn.Sequential(*mlp[:3], nn.Sigmoid())
            found |= named(f"transformer.decoder.aft_{name}.atfm.{number}attetion_block", gate)
            found |= named(f"transformer.decoder.aft_{name}.atfm.{number}mlp_layer", mlp)
    return found


@pytest.mark.parametrize("changes", [{}, {"shared_fusion": True, "missing_object": True}], ids=["hico", "v-coco"])
def test_murens_own_checkpoints_load_whole_and_are_written_back(tmp_path, changes):
    config = tiny_config(backbone=RESNET18, heads=8, **changes)
    names = muren_names_and_shapes(config)
    model = tiny_muren(backbone=RESNET18, heads=8, **changes)
    written = muren_names.to_muren(model.state_dict(), config)
    assert {key: tuple(each.shape) for key, each in written.items()} == names
    torch.save(
        {"model": written | {"matching_embed.layers.0.bias": torch.zeros(1)}, "epoch": 3}, tmp_path / "muren.pth"
    )
    other = tiny_muren(seed=1, backbone=RESNET18, heads=8, **changes)
    report = initialise(other, tmp_path / "muren.pth")
    assert report.missing == report.mismatched == ()
    assert report.unexpected == ("matching_embed.layers.0.bias",)
    assert all(torch.equal(each, other.state_dict()[key]) for key, each in model.state_dict().items())


def test_murens_cross_layer_means_what_ours_does():
    """Norms 2 and 3 of its context layer stand after attention and after the feed-forward block."""
    config = tiny_config(backbone=RESNET18, heads=8)
    model = tiny_muren(backbone=RESNET18, heads=8)
    for parameter in model.mure.parameters():
        nn.init.normal_(parameter, std=0.3)
    prefix = "transformer.decoder.MURE.mc_gen."
    own = {key.removeprefix(prefix): each for key, each in muren_names.to_muren(model.state_dict(), config).items()}
    attention = nn.MultiheadAttention(32, 8, batch_first=True)
    parts = {key: each for key, each in own.items() if key.startswith("multihead_attn.")}
    attention.load_state_dict({key.removeprefix("multihead_attn."): each for key, each in parts.items()})
    x, memory, positions = torch.randn(2, 3, 32), torch.randn(2, 5, 32), torch.randn(2, 5, 32)

    def norm(value, name):
        return nn.functional.layer_norm(value, (32,), own[f"{name}.weight"], own[f"{name}.bias"])

    with torch.inference_mode():
        y = norm(x + attention(x, memory + positions, memory)[0], "norm2")
        hidden = (y @ own["linear1.weight"].T + own["linear1.bias"]).relu()
        expected = norm(y + hidden @ own["linear2.weight"].T + own["linear2.bias"], "norm3")
        torch.testing.assert_close(model.mure.context(x, memory, None, positions), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("second", ["interaction_decoder", "stage2_decoder", None])
def test_a_cdn_or_qpic_gives_its_decoders_when_asked(tmp_path, second):
    config = tiny_config(backbone=RESNET18, heads=8)
    decoders = {"first": "transformer.decoder"} | ({} if second is None else {"second": f"transformer.{second}"})
    shapes = dict(
        released(
            config,
            decoders={key: f"{name}.layers" for key, name in decoders.items()},
            norms={key: f"{name}.norm" for key, name in decoders.items()},
        )
    )
    weights = {key: torch.randn(shape) for key, shape in shapes.items()} | {"query_embed.weight": torch.randn(9, 32)}
    weights["class_embed.weight"] = torch.randn(92, 32)  # its converter leaves DETR's behind
    torch.save({"model": weights}, tmp_path / "cdn.pth")
    model = tiny_muren(backbone=RESNET18, heads=8)
    with pytest.raises(UserError, match="allow_random_decoder"):
        initialise(model, tmp_path / "cdn.pth")
    report = initialise(model, tmp_path / "cdn.pth", decoders_from_detr=True)
    own = model.state_dict()
    for branch in BRANCHES:
        source = decoders["second"] if branch == "relation" and second else "transformer.decoder"
        packed = weights[f"{source}.layers.1.multihead_attn.in_proj_weight"]
        assert torch.equal(own[f"decoders.{branch}.1.encoder_attn.k_proj.weight"], packed[32:64])
        assert torch.equal(own[f"norms.{branch}.bias"], weights[f"{source}.norm.bias"])
    assert torch.equal(own["queries.object"], weights["query_embed.weight"][:6])
    assert torch.equal(own["human_box.layers.2.bias"], weights["sub_bbox_embed.layers.2.bias"])
    assert torch.equal(own["verb_classifier.weight"], weights["verb_class_embed.weight"])
    relation = {"queries.relation"} if second else set()
    assert {key for key in report.missing if not key.startswith(("mure.", "fusions."))} == relation
    assert report.unexpected == ("class_embed.weight",)


def test_heads_of_another_vocabulary_stay_random_and_are_told(tmp_path):
    config = tiny_config(backbone=RESNET18, heads=8, verbs=V + 2)
    written = muren_names.to_muren(tiny_muren(backbone=RESNET18, heads=8, verbs=V + 2).state_dict(), config)
    torch.save({"model": written}, tmp_path / "muren.pth")
    report = initialise(tiny_muren(backbone=RESNET18, heads=8), tmp_path / "muren.pth")
    assert report.missing == ("verb_classifier.bias", "verb_classifier.weight")
    assert f"verb_classifier.bias: [{V + 2}] against [{V}]" in report.mismatched
    assert report.found


def test_bad_sources_are_refused_in_one_line(tmp_path, capsys):
    model = tiny_muren()
    with pytest.raises(UserError, match="no such checkpoint"):
        initialise(model, tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(UserError, match="cannot start from BertModel; there are DetrForObjectDetection"):
        initialise(model, tmp_path)
    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="read safely"):
        initialise(model, tmp_path / "trap.pth")
    assert "ran" not in capsys.readouterr().out
    torch.save({"model": {"fc.weight": torch.zeros(K)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"'fc.weight' is no weight of the original DETR"):
        initialise(model, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no 'rt_detr_resnet'; only a resnet"):
        muren_names.to_muren({}, tiny_config(backbone={"model_type": "rt_detr_resnet"}))


def test_a_detector_of_few_classes_gives_the_object_head_the_rows_that_it_knows():
    from hoi_distill.stages.data.vocabulary import hico_vocabulary
    from hoi_distill.stages.student.methods.vlm_hoi.config import VlmHoiConfig, network_config

    pico = PICO.parent / "detr"
    sizes = {"d_model": 96, "heads": 4, "ffn": 192, "encoder_layers": 1, "decoder_layers": 2, "queries": 16}
    config = VlmHoiConfig(model={"backbone": {"folder": str(pico)}, "frozen_stages": 3, **sizes})
    torch.manual_seed(0)
    model = Muren(network_config(config, hico_vocabulary()))
    before = model.object_classifier.weight.detach().clone()
    initialise(model, pico, decoders_from_detr=True)
    own, theirs = model.object_classifier.weight, state(pico)["class_labels_classifier.weight"]
    labels = json.loads((pico / "config.json").read_text())["id2label"]
    known = [COCO_OBJECTS.index(name.replace(" ", "_")) for name in labels.values()]
    assert torch.equal(own[known], theirs[: len(known)])
    assert torch.equal(own[-1], theirs[-1])
    others = [row for row in range(80) if row not in known]
    assert torch.equal(own[others], before[others])
