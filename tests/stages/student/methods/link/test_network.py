"""The LINK network: what its answers have the shape of, and what they depend on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from hoi_distill.pipeline.config.student import read_section
from hoi_distill.stages.ops.roi_align import roi_align
from hoi_distill.stages.student.methods.link.geometric_encoder import UnaryQuery
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkNetworkConfig, LinkShape
from hoi_distill.stages.student.pairs.layers.attention import Padding
from hoi_distill.stages.student.pairs.layers.box_encoding import box_encoding, unit_boxes
from hoi_distill.storage.errors import UserError
from tests.fixtures.link_scenes import CHANNELS, GRID, SMALL, TEXT_WIDTH, VERB, batch, network, subset

COUNTS = [(2, 4), (0, 3), (1, 1), (3, 7), (0, 0), (1, 2)]
LADDER = {
    "A1": {"geometric_encoder": False, "pair_geometry": False, "linking_decoder": False},
    "A2": {"geometric_encoder": False, "pair_geometry": False},
    "A3": {"linking_decoder": False},
    "A4": {},
}
rows = pytest.mark.parametrize("row", LADDER)


@rows
def test_shapes(row):
    regions = batch(COUNTS)
    output = network(**LADDER[row])(regions)
    instances, pairs = 17, 6 + 18 + 1
    assert output.logits.shape == (2, pairs, len(VERB))
    assert output.unary.shape == (2, instances, SMALL.width)
    assert output.pairs.shape == (2, pairs, SMALL.pair_width)
    assert output.latent.shape == (len(COUNTS), SMALL.width, *GRID)


@rows
@pytest.mark.parametrize("order", [[3], [0], [5, 3, 0], [1, 2, 4], [2, 0, 1, 5, 4, 3]], ids=str)
def test_a_image_is_answered_alone_as_in_any_company(row, order):
    regions = batch(COUNTS)
    model = network(**LADDER[row])
    whole = model(regions)
    part, instances, pairs = subset(regions, order)
    alone = model(part)
    exact = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(alone.logits, whole.logits[:, pairs], **exact)
    torch.testing.assert_close(alone.pairs, whole.pairs[:, pairs], **exact)
    torch.testing.assert_close(alone.unary, whole.unary[:, instances], **exact)
    torch.testing.assert_close(alone.latent, whole.latent[order], **exact)


@rows
@pytest.mark.parametrize("counts", [[(0, 0)], [(0, 3), (0, 0)], [(1, 1)], [(1, 1), (2, 3)]], ids=str)
def test_images_without_pairs_are_finite_and_train(row, counts):
    model = network(**LADDER[row]).train()
    output = model(batch(counts))
    answers = [each for each in output if each is not None]
    sum(each.square().sum() for each in answers).backward()
    assert len(answers) >= 4
    assert all(each.isfinite().all() for each in answers)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_degenerate_boxes_are_finite():
    regions = batch([(2, 4)])
    regions.boxes[0] = torch.tensor([10.0, 10, 10, 10])
    regions.boxes[1] = torch.tensor([-1e4, 5, 1e4, 5])
    model = network()
    output = model(regions)
    output.logits.sum().backward()
    assert output.logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@rows
def test_every_parameter_learns(row):
    model = network(**LADDER[row]).train()
    model(batch(COUNTS)).logits.sigmoid().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@rows
def test_boxes_steer_the_encoder_only_where_it_is_geometric(row):
    model = network(**LADDER[row])
    regions = batch([(2, 5)])
    moved = replace(regions, maps=torch.ones_like(regions.maps), boxes=regions.boxes.flip(1).abs())
    still = replace(regions, maps=torch.ones_like(regions.maps))
    look = torch.randn(5, SMALL.width)
    model.unary_query.forward = lambda *_: look  # equal looks, so that only an encoding can tell boxes apart
    same = torch.equal(model(still).unary, model(moved).unary)
    assert same == (row in ("A1", "A2"))


@rows
def test_boxes_enter_the_pair_query_only_where_the_encoder_is_geometric(row):
    model = network(**LADDER[row])
    regions = batch([(2, 5)])
    unary = torch.randn(5, SMALL.width)
    before, after = (model.pair_query(unary, each) for each in (regions, replace(regions, boxes=regions.boxes.flip(0))))
    assert torch.equal(before, after) == (row in ("A1", "A2"))
    assert before.shape == (len(regions.pairs), SMALL.pair_width)


def test_summed_encodings_are_part_of_the_unary_queries_before_the_first_layer():
    literal, plain = network(box_encoding="sum"), network(geometric_encoder=False)
    plain.encoder.load_state_dict(literal.encoder.state_dict())  # it has no weights of its own
    regions = batch([(2, 5)])
    look = torch.randn(5, SMALL.width)
    boxes = box_encoding(unit_boxes(regions.boxes, regions.size[regions.image]), SMALL.width)
    padding = Padding(regions.image, regions.counts.instances)
    centre, size = boxes.chunk(2, 1)
    torch.testing.assert_close(
        literal.encoder(look, boxes, padding), plain.encoder(look + centre + size, boxes, padding)
    )


def test_a_row_without_boxes_knows_none():
    """The paper's A1: pairs of instances that look alike get one answer, wherever they are."""
    model = network(**LADDER["A1"])
    regions = batch([(2, 5)])
    look = torch.randn(5, SMALL.width)
    model.unary_query.forward = lambda *_: look
    assert torch.equal(model(regions).logits, model(replace(regions, boxes=regions.boxes.flip(0))).logits)


@pytest.mark.parametrize("branches", ["spatial", "semantic"])
def test_a_branch_that_is_left_out_is_not_read(branches):
    model = network(linking_branches=branches)
    regions = batch([(2, 5), (1, 3)])
    pairs, look = torch.randn(len(regions.pairs), SMALL.pair_width), torch.randn(8, SMALL.width)
    unit = unit_boxes(regions.boxes, regions.size[regions.image])
    latent, native = torch.randn(2, SMALL.width, *GRID), torch.randn(2, CHANNELS, *GRID)
    answer = model.decoder(pairs, look, unit, latent, native, regions)
    other = {"spatial": (latent, -native), "semantic": (-latent, native)}[branches]
    assert torch.equal(answer, model.decoder(pairs, look, unit, *other, regions))
    assert {name for name in ("query", "native_query") if hasattr(model.decoder.layers[0].look, name)} == {
        {"spatial": "query", "semantic": "native_query"}[branches]
    }


def test_a_semantic_branch_that_starts_at_zero_says_nothing_at_first_and_learns():
    zero = network(semantic_start="zero").train()
    regions = batch(COUNTS)
    changed = network(semantic_start="zero").train()
    for layer in changed.decoder.layers:
        torch.nn.init.ones_(layer.look.native_key_value.weight)
    torch.manual_seed(0)
    answer = zero(regions).logits
    torch.manual_seed(0)
    assert torch.equal(answer, changed(regions).logits)
    answer.sigmoid().sum().backward()
    assert zero.decoder.layers[0].look.mix[0].weight.grad[:, SMALL.pair_width :].any()


@rows
@pytest.mark.parametrize("what", ["look", "boxes", "native", "latent"])
def test_the_decoder_reads_boxes_and_native_map_only_where_it_links(row, what):
    model = network(**LADDER[row])
    regions = batch([(2, 5), (1, 3)])
    arguments = {
        "pairs": torch.randn(len(regions.pairs), SMALL.pair_width),
        "look": torch.randn(8, SMALL.width),
        "boxes": unit_boxes(regions.boxes, regions.size[regions.image]),
        "latent": torch.randn(2, SMALL.width, *GRID),
        "native": torch.randn(2, CHANNELS, *GRID),
    }
    before = model.decoder(*arguments.values(), regions)
    arguments[what] = arguments[what].flip(0 if what in ("look", "boxes") else 3)
    changed = arguments[what] + 0.1 * arguments[what].square() if what in ("native", "latent") else arguments[what]
    after = model.decoder(*{**arguments, what: changed}.values(), regions)
    assert torch.allclose(before, after, atol=1e-6) == (what != "latent" and row in ("A1", "A3"))


def test_a_narrow_box_scales_its_centre_but_not_beyond_a_cell():
    decoder = network().decoder
    unit = torch.tensor([[0.5, 0.5, 0.5, 0.25], [0.5, 0.5, 0.5, 1e-3]])
    boxes, look = box_encoding(unit, SMALL.width), torch.zeros(2, SMALL.width)
    for parameter in decoder.extent.parameters():
        torch.nn.init.zeros_(parameter)  # asks for an extent of one half
    wide, thin = decoder._modulated(boxes, look, unit, GRID)
    half = SMALL.width // 2
    torch.testing.assert_close(wide[:half], boxes[0, :half])
    torch.testing.assert_close(wide[half:], 2 * boxes[0, half : SMALL.width])
    torch.testing.assert_close(thin[half:], 0.5 * GRID[1] * boxes[0, half : SMALL.width])


def test_pairs_look_at_each_other_only_with_self_attention():
    for switch in (True, False):
        model = network(pair_self_attention=switch, geometric_encoder=False)
        regions = batch([(2, 3)])
        fewer = replace(regions, pairs=regions.pairs[:3], counts=regions.counts._replace(pairs=(3,)))
        assert torch.allclose(model(regions).logits[:, :3], model(fewer).logits, atol=1e-4) == (not switch)


def test_an_instance_looks_as_the_mean_of_its_box():
    regions = batch([(1, 3), (2, 2)])
    query = UnaryQuery(CHANNELS, 8, roi_size=7)
    h, w = GRID
    cells = regions.boxes / regions.size[regions.image].repeat(1, 2) * torch.tensor([w, h, w, h])
    grid = roi_align(regions.maps, torch.cat((regions.image[:, None], cells), 1), 7, sampling_ratio=2)
    torch.testing.assert_close(query(regions.maps, regions), query.project(grid.mean((2, 3))))


def test_logits_are_scaled_cosines_with_the_text():
    text = torch.randn(len(VERB), TEXT_WIDTH)
    head = Link(LinkShape(CHANNELS, TEXT_WIDTH, SMALL), VERB, text).classifier
    pairs = torch.randn(3, SMALL.pair_width)
    cosine = F.cosine_similarity(head.project(pairs)[:, None], text[None], dim=-1)
    torch.testing.assert_close(head(pairs), 14.3 * cosine - 2)


def test_a_verbs_logit_serves_all_its_interactions():
    text = torch.randn(len(VERB), TEXT_WIDTH)
    head = Link(LinkShape(CHANNELS, TEXT_WIDTH, replace(SMALL, classes="verb")), VERB, text).classifier
    mean = F.normalize(F.normalize(text, dim=1)[VERB == 1].mean(0), dim=0)
    torch.testing.assert_close(head.rows[1].detach(), mean)
    logits = head(torch.randn(4, SMALL.pair_width))
    assert logits.shape == (4, len(VERB))
    assert torch.equal(logits[:, 0], logits[:, 2])
    assert not torch.equal(logits[:, 0], logits[:, 1])


@pytest.mark.parametrize("classes", ["hoi", "verb"])
def test_swapped_rows_give_the_logits_of_a_network_built_with_them(classes):
    regions, verb = batch(COUNTS), torch.tensor([3, 0, 1, 1, 2, 5, 4])
    text = torch.randn(len(verb), TEXT_WIDTH, generator=torch.Generator().manual_seed(9))
    model = network(classes=classes, train_rows=False)
    swapped = model.with_classes(verb, text)
    torch.manual_seed(0)
    built = Link(model.shape, verb, text).eval()
    built.load_state_dict({**model.state_dict(), "classifier.rows": built.classifier.rows})
    assert torch.equal(swapped(regions).logits, built(regions).logits)
    assert swapped(regions).logits.shape[-1] == len(verb)
    assert model(regions).logits.shape[-1] == len(VERB)
    assert not swapped.training


def test_switches_hold_rows_and_scale_still():
    model = network(train_rows=False, learn_scale=False).train()
    model(batch(COUNTS)).logits.sum().backward()
    assert model.classifier.rows.grad is None
    assert model.classifier.scale.grad is None
    assert model.classifier.project.weight.grad is not None


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("classes", ["hoi", "verb"])
def test_a_network_is_rebuilt_from_its_shape_and_weights(text, classes):
    model = network(text=text, classes=classes)
    record = json.loads(json.dumps(asdict(model.shape)))
    other = Link(LinkShape.from_json(record), VERB).eval()
    other.load_state_dict(model.state_dict())
    regions = batch(COUNTS)
    assert torch.equal(other(regions).logits, model(regions).logits)


def test_half_precision_maps_and_autocast():
    regions = batch(COUNTS)
    model = network()
    with torch.autocast("cpu", torch.bfloat16):
        low = model(replace(regions, maps=regions.maps.half())).logits
    torch.testing.assert_close(low.float(), model(regions).logits, rtol=0.1, atol=0.3)


def test_what_cannot_be_built_is_said():
    for keys, said in (
        ({"width": 30}, "student.network.width: 30; sines"),
        ({"pair_width": 100}, "student.network.pair_width: 100; not a multiple of heads: 8"),
        ({"dropout": 1.5}, "student.network.dropout: expected less than 1; got 1.5"),
        (
            {"semantic_start": "zero", "linking_branches": "spatial"},
            "student.network.semantic_start: zero; there is one",
        ),
        ({"classes": "object"}, "student.network.classes: expected hoi or verb; got 'object'"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            read_section({"method": "link", "labelled": None, "network": keys}, "student.")
    with pytest.raises(UserError, match=r"heads: 8; the semantic branch .* 50 channels"):
        LinkShape(50, None, LinkNetworkConfig())
    with pytest.raises(UserError, match=r"text embeddings are \[5, 7\], the network wants \[5, 20\]"):
        Link(LinkShape(CHANNELS, TEXT_WIDTH, SMALL), VERB, torch.randn(5, 7))


@pytest.mark.parametrize(
    ("row", "millions"), [("A1", 7.59), ("A2", 11.96), ("A3", 8.62), ("A4", 12.99)]
)  # CLIP-B/16's projected map and HICO-DET's 600 interactions
def test_parameters_at_the_default_sizes(row, millions):
    shape = LinkShape(512, 512, LinkNetworkConfig(**LADDER[row]))
    model = Link(shape, torch.arange(600) % 117)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.slow
def test_the_largest_batch_fits():
    """435 pairs in each of 16 images, forward and backward, in a process of its own."""
    program = """
import resource, torch
from hoi_distill.stages.student.methods.link.network import Link
from hoi_distill.stages.student.methods.link.network_config import LinkShape, LinkNetworkConfig
from tests.fixtures.link_scenes import batch
torch.set_num_threads(1)
regions = batch([(15, 30)] * 16, channels=512, grid=(14, 14))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
output = Link(LinkShape(512, 512, LinkNetworkConfig()), torch.arange(600) % 117)(regions)
assert output.logits.shape == (2, 16 * 435, 600)
output.logits.sigmoid().mean().backward()
print(before / 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, peak = map(float, done.stdout.split())
    print(f"peak {peak:.2f} GiB, {before:.2f} GiB of it before")
    assert peak < 4
