"""The network is the published one: its sizes, its encoder transformers' own, its padding without effect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hoi_distill.stages.student.methods.vlm_hoi.attention import CrossLayer, layer_config, sine_positions
from hoi_distill.stages.student.methods.vlm_hoi.criterion import Criterion
from hoi_distill.stages.student.methods.vlm_hoi.model_config import MurenConfig
from hoi_distill.stages.student.methods.vlm_hoi.muren import Muren
from hoi_distill.stages.student.methods.vlm_hoi.relation import BRANCHES, AttentiveFusion, MultiplexRelation
from hoi_distill.storage.errors import UserError
from tests.fixtures.tiny_muren import RESNET, K, N, V, random_targets, tiny_config, tiny_muren


def parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def whole(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize(
    ("config", "total", "fusions"),
    [(MurenConfig.hico(), 75_244_302, 18), (MurenConfig.v_coco(), 69_328_311, 3)],
    ids=["hico", "v-coco"],
)
def test_the_published_sizes(config, total, fusions):
    """About 75 and 69 million parameters; the 28 million of the paper are the eighteen decoder layers."""
    with torch.device("meta"):
        model = Muren(config)
    d, ffn = 256, 2048
    attention, norm, feed_forward = 4 * (d * d + d), 2 * d, 2 * d * ffn + ffn + d

    def mixer(tokens: int) -> int:
        return tokens * d * d + d + d * d + d + norm

    encoder_layer = attention + feed_forward + 2 * norm
    decoder_layer = 2 * attention + feed_forward + 3 * norm
    mure = mixer(3) + 3 * mixer(2) + 2 * encoder_layer + 3 * encoder_layer
    parts = {
        "backbone": 23_508_032,  # torchvision's ResNet-50 without its classifier
        "input_projection": 2048 * d + d,
        "encoder": 6 * encoder_layer,
        "queries": 3 * config.queries * d,
        "decoders": 18 * decoder_layer,
        "norms": 3 * norm,
        "mure": mure,
        "fusions": fusions * (mixer(2) + mixer(2) - norm),
        "human_box": 2 * (d * d + d) + 4 * d + 4,
        "object_box": 2 * (d * d + d) + 4 * d + 4,
        "object_classifier": (config.no_object + 1) * (d + 1),
        "verb_classifier": config.verbs * (d + 1),
    }
    assert {name: parameters(part) for name, part in model.named_children()} == parts
    assert parts["decoders"] == 28_417_536
    assert sum(parts.values()) == parameters(model) == total
    assert config.no_object + 1 == (81 if config.verbs == 117 else 82)


@pytest.mark.slow
@pytest.mark.parametrize("config", [MurenConfig.hico(), MurenConfig.v_coco()], ids=["hico", "v-coco"])
def test_shapes_at_real_size(config):
    model = Muren(config).eval()
    seen = {}
    for name, part in (("map", model.backbone), ("projected", model.input_projection), ("context", model.mure)):
        part.register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, tuple(output.shape))
        )
    with torch.inference_mode():
        output = model(torch.randn(1, 3, 100, 160), whole(1, 100, 160))
    n = config.queries
    assert seen == {"map": (1, 2048, 4, 5), "projected": (1, 256, 4, 5), "context": (1, n, 256)}
    k, v = (81, 117) if config.verbs == 117 else (82, 29)
    assert [tuple(each.shape) for each in output] == [(6, 1, n, 4), (6, 1, n, 4), (6, 1, n, k), (6, 1, n, v)]
    assert all(each.isfinite().all() for each in output)


def test_shapes_of_both_layouts():
    pictures, mask = torch.randn(2, 3, 64, 96), whole(2, 64, 96)
    with torch.inference_mode():
        plain, missing = tiny_muren()(pictures, mask), tiny_muren(missing_object=True)(pictures, mask)
    assert [tuple(each.shape[-1:]) for each in plain] == [(4,), (4,), (K + 1,), (V,)]
    assert missing.object_logits.shape == (2, 2, N, K + 2)
    assert plain.layer(-1).verb_logits.shape == (2, N, V)
    assert ((plain.human_boxes > 0) & (plain.human_boxes < 1)).all()


@pytest.mark.parametrize("shared_fusion", [False, True])
def test_fusion_is_shared_over_layers_or_not(shared_fusion):
    model = tiny_muren(shared_fusion=shared_fusion)
    assert [len(model.fusions[name]) for name in BRANCHES] == [1 if shared_fusion else 2] * 3
    calls = []
    for name in BRANCHES:
        for fusion in model.fusions[name]:
            fusion.register_forward_hook(lambda module, inputs, output: calls.append(module))
    model(torch.randn(1, 3, 64, 64), whole(1, 64, 64))
    assert len(calls) == 6
    assert len(set(calls)) == (3 if shared_fusion else 6)


def test_pictures_in_a_batch_are_answered_as_alone():
    model = tiny_muren()
    pictures = torch.randn(3, 3, 64, 96)
    with torch.inference_mode():
        together = model(pictures, whole(3, 64, 96))
        for index, picture in enumerate(pictures):
            alone = model(picture[None], whole(1, 64, 96))
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a[:, 0], b[:, index], atol=1e-5, rtol=1e-5)


def test_nothing_after_the_backbone_sees_the_padding():
    """Whatever the convolutions leave in cells outside the picture. (What they carry across its border is DETR's own.)"""
    model = tiny_muren()
    sizes = [(2, 3), (3, 2), (3, 4)]
    maps = [torch.randn(1, 16, h, w) for h, w in sizes]
    padded, cells = 100 * torch.randn(3, 16, 3, 4), torch.zeros(3, 3, 4, dtype=torch.bool)
    for index, (h, w) in enumerate(sizes):
        padded[index, :, :h, :w], cells[index, :h, :w] = maps[index], True
    with torch.inference_mode():
        together = model.transform(padded, cells)
        for index, (h, w) in enumerate(sizes):
            alone = model.transform(maps[index], whole(1, h, w))
            for a, b in zip(alone, together, strict=True):
                torch.testing.assert_close(a[:, 0], b[:, index], atol=1e-5, rtol=1e-5)


def test_the_mask_of_the_map_covers_what_the_picture_fills():
    model = tiny_muren()
    seen = {}
    model.transform = lambda feature_map, cells: seen.update(cells=cells)  # type: ignore[assignment]
    mask = whole(2, 128, 160)
    mask[1, 70:] = False  # 70 rows alone would make ceil(70 / 32) = 3 rows of cells
    mask[1, :, 64:] = False
    model(torch.randn(2, 3, 128, 160), mask)
    assert seen["cells"][0].all()
    assert seen["cells"][1].nonzero().amax(0).tolist() == [2, 1]
    assert seen["cells"][1].sum() == 3 * 2


def test_encoder_and_positions_are_those_of_transformers_detr():
    from transformers import DetrConfig, DetrModel

    model = tiny_muren()
    config = DetrConfig(
        use_timm_backbone=False, backbone_config=RESNET, d_model=32, encoder_layers=2, decoder_layers=1, num_queries=3,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
    )  # fmt: skip
    detr = DetrModel(config).eval()
    own = {key: value for key, value in model.state_dict().items() if key in detr.state_dict()}
    assert {key.split(".")[0] for key in own} == {"backbone", "input_projection", "encoder"}
    assert not [key for key in model.state_dict() if key.startswith(("backbone", "encoder", "input")) and key not in own
                and not key.endswith("num_batches_tracked")]  # fmt: skip
    detr.load_state_dict(own, strict=False)
    pictures, mask = torch.randn(2, 3, 96, 128), whole(2, 96, 128)
    mask[1, :, 70:] = False
    seen = {}
    model.decode = lambda memory, *rest: seen.update(memory=memory) or {}  # type: ignore[assignment]
    model.heads = lambda tokens: None  # type: ignore[assignment]
    with torch.inference_mode():
        model(pictures, mask)
        expected = detr(pictures, mask).encoder_last_hidden_state
    torch.testing.assert_close(seen["memory"], expected, atol=1e-5, rtol=1e-4)


def test_positions_at_256_channels_are_detrs():
    from transformers.models.detr.modeling_detr import DetrSinePositionEmbedding

    mask = whole(2, 5, 7)
    mask[1, 3:], mask[1, :, 4:] = False, False
    theirs = DetrSinePositionEmbedding(128, normalize=True)(torch.Size((2, 256, 5, 7)), "cpu", torch.float32, mask)
    inside = mask.flatten(1)
    torch.testing.assert_close(sine_positions(mask, 256)[inside], theirs.flatten(2).mT[inside])
    torch.testing.assert_close(sine_positions(whole(1, 3, 4), 256)[0], sine_positions(mask, 256)[1][inside[1]])


def test_mure_step_by_step():
    """The six steps, one HOI at a time, by torch's own attention."""
    torch.manual_seed(0)
    width = 16
    mure = MultiplexRelation(layer_config(width, 4, 24, 0.0)).eval()
    h, o, r = (torch.randn(2, 3, width) for _ in range(3))
    memory, positions = torch.randn(2, 5, width), torch.randn(2, 5, width)
    mask = whole(2, 5)
    mask[1, 3:] = False

    def attend(module, query, key, value):
        heads = [
            torch.softmax(q @ k.T / 2, -1) @ v  # sqrt of 4 channels a head
            for q, k, v in zip(
                module.q_proj(query).split(4, -1), module.k_proj(key).split(4, -1), module.v_proj(value).split(4, -1),
                strict=True,
            )
        ]  # fmt: skip
        return module.o_proj(torch.cat(heads, -1))

    def encode(layer, x):
        x = layer.self_attn_layer_norm(x + attend(layer.self_attn, x, x, x))
        return layer.final_layer_norm(x + layer.mlp.fc2(layer.mlp.fc1(x).relu()))

    def cross(layer, x, keys, values):
        x = layer.encoder_attn_layer_norm(x + attend(layer.encoder_attn, x, keys, values))
        return layer.final_layer_norm(x + layer.mlp.fc2(layer.mlp.fc1(x).relu()))

    with torch.inference_mode():
        found = mure((h, o, r), memory, mask[:, None, None], positions)
        for b in range(2):
            seen, at = memory[b][mask[b]], positions[b][mask[b]]
            for n in range(3):
                tau = mure.ternary(torch.cat((h[b, n], o[b, n], r[b, n])))[None]
                one = encode(mure.unary, torch.stack((h[b, n], o[b, n], r[b, n])))
                tau = cross(mure.unary_cross, tau, one, one)
                two = torch.stack(
                    [
                        mure.pairs["human_object"](torch.cat((one[0], one[1]))),
                        mure.pairs["human_relation"](torch.cat((one[0], one[2]))),
                        mure.pairs["object_relation"](torch.cat((one[1], one[2]))),
                    ]
                )
                two = encode(mure.pairwise, two)
                tau = cross(mure.pairwise_cross, tau, two, two)
                context = cross(mure.context, tau, seen + at, seen)
                torch.testing.assert_close(found[b, n], context[0], atol=1e-5, rtol=1e-4)


def test_fusion_is_a_gated_residual():
    fusion = AttentiveFusion(8)
    x, c = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    both = torch.cat((x, c), -1)
    gate = torch.sigmoid(fusion.gate[2](fusion.gate[0](both).relu()))
    update = fusion.update[3](fusion.update[2](fusion.update[0](both).relu()))
    torch.testing.assert_close(fusion(x, c), x + gate * update)


def test_gradients_reach_what_should_learn_and_nothing_else():
    model = tiny_muren().train()
    output = model(torch.randn(2, 3, 64, 64), whole(2, 64, 64))
    torch.stack([(each * torch.randn_like(each)).sum() for each in output]).sum().backward()
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert {name for name, each in model.named_parameters() if each.grad is None} == frozen
    dead = {name for name, each in model.named_parameters() if each.grad is not None and not each.grad.any()}
    # As in DETR the first layer's self-attention has only zeros to pass on, until its biases have learnt.
    idle = ("self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight", "self_attn.k_proj.bias",
            "self_attn.v_proj.weight", "self_attn.o_proj.weight", "self_attn_layer_norm.weight")  # fmt: skip
    assert dead == {f"decoders.{branch}.0.{part}" for branch in BRANCHES for part in idle}
    stem = {name for name in frozen if ".embedder." in name}
    first = {name for name in frozen if ".stages.0." in name}
    assert stem
    assert first
    assert all("normalization" in name for name in frozen - stem - first)
    assert any(".stages.1." in name and each.requires_grad for name, each in model.named_parameters())


def test_nothing_is_frozen_where_nothing_is_to_be():
    model = tiny_muren(frozen_batch_norm=False, frozen_stages=0).train()
    assert all(each.requires_grad for each in model.parameters())
    norm = model.backbone.model.encoder.stages[1].layers[0].layer[0].normalization
    before = norm.running_mean.clone()
    model(torch.randn(2, 3, 64, 64), whole(2, 64, 64))
    assert not torch.equal(norm.running_mean, before)


def test_frozen_batch_norms_keep_their_statistics_in_training():
    model = tiny_muren().train()
    statistics = {
        key: value.clone() for key, value in model.state_dict().items() if "running" in key or "batches" in key
    }
    model(torch.randn(2, 3, 64, 64), whole(2, 64, 64))
    assert model.training
    for key, value in statistics.items():
        assert torch.equal(model.state_dict()[key], value), key


def test_a_freezing_backbone_must_have_the_parts():
    with pytest.raises(UserError, match=r"frozen_stages: 6: backbone 'resnet' has no part 'encoder.stages.4'"):
        tiny_muren(frozen_stages=6)
    with pytest.raises(UserError, match="model_type 'vgg' is not known"):
        tiny_muren(backbone={"model_type": "vgg"})
    with pytest.raises(UserError, match="d_model: 30"):
        tiny_config(d_model=30)


def test_the_configuration_survives_json():
    import json

    config = tiny_config(missing_object=True)
    assert MurenConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_untrained_network_passes_something_on():
    """transformers' own draw of RT-DETR's backbone leaves a map of standard deviation 1e-4 and less."""
    rt = {**RESNET, "model_type": "rt_detr_resnet", "hidden_sizes": [8, 12, 16, 24]}
    for backbone in (RESNET, rt):
        model = tiny_muren(backbone=backbone)
        with torch.inference_mode():
            assert model.backbone(torch.randn(2, 3, 64, 64)).std() > 0.05


def test_a_cross_layer_drops_out_only_in_training():
    layer = CrossLayer(layer_config(16, 4, 24, 0.5))
    x, memory = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    assert not torch.equal(layer.train()(x, memory), layer(x, memory))
    assert torch.equal(layer.eval()(x, memory), layer(x, memory))
    layer.train().mlp, layer.encoder_attn.attention_dropout = nn.Identity(), 0.0
    assert not torch.equal(layer(x, memory), layer(x, memory)), "what attention brings drops out too"


@pytest.mark.parametrize("shared_fusion", [False, True])
def test_the_three_branches_layer_by_layer(shared_fusion):
    """Written out: decoder layers, context, fusion; what is fused goes on and, normed, to its branch's heads."""
    model = tiny_muren(shared_fusion=shared_fusion)
    memory, positions, mask = torch.randn(1, 6, 32), torch.randn(1, 6, 32), whole(1, 1, 1, 6)
    mask[..., 4:] = False
    q_h, q_o, q_r = (model.queries[name][None] for name in ("human", "object", "relation"))
    h = o = r = torch.zeros(1, N, 32)
    with torch.inference_mode():
        output = model.heads(model.decode(memory, mask, positions))
        for index in range(2):
            h = model.decoders.human[index](h, None, positions, q_h, memory, mask)
            o = model.decoders.object[index](o, None, positions, q_o, memory, mask)
            r = model.decoders.relation[index](r, None, positions, q_r, memory, mask)
            c = model.mure((h, o, r), memory, mask, positions)
            at = 0 if shared_fusion else index
            h, o, r = model.fusions.human[at](h, c), model.fusions.object[at](o, c), model.fusions.relation[at](r, c)
            here = output.layer(index)
            torch.testing.assert_close(here.human_boxes, model.human_box(model.norms.human(h)).sigmoid())
            torch.testing.assert_close(here.object_boxes, model.object_box(model.norms.object(o)).sigmoid())
            torch.testing.assert_close(here.object_logits, model.object_classifier(model.norms.object(o)))
            torch.testing.assert_close(here.verb_logits, model.verb_classifier(model.norms.relation(r)))


def test_half_precision_trains():
    """float16 where autocast wants it, boxes and loss in float32, gradients finite under a scaled loss."""
    model = tiny_muren().train()
    pictures, targets = torch.randn(2, 3, 64, 64), [random_targets(2), random_targets(0)]
    with torch.autocast("cpu", dtype=torch.float16):
        output = model(pictures, whole(2, 64, 64))
        total, _, _ = Criterion()(output, targets)
    assert output.verb_logits.dtype == torch.float16
    assert output.human_boxes.dtype == output.object_boxes.dtype == total.dtype == torch.float32
    (256 * total).backward()
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)
    with torch.no_grad():
        exact, _, _ = Criterion()(model(pictures, whole(2, 64, 64)), targets)
    assert total.item() == pytest.approx(exact.item(), rel=1e-2)
