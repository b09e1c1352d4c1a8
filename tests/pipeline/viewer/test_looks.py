"""Where a student looks for a pair, and how like a prompt the cells of a map are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from hoi_distill.pipeline.train import train_student
from hoi_distill.pipeline.viewer.library import Library
from hoi_distill.pipeline.viewer.looks import Looks
from hoi_distill.pipeline.viewer.maps import attention, likeness
from hoi_distill.pipeline.workspace import prepare
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_stages import run
from tests.fixtures.viewed import Served, library_of, served

ROOT = Path(__file__).parents[3]
NETWORK = {
    "width": 16, "pair_width": 24, "heads": 2, "ffn": 32, "pair_ffn": 32, "encoder_layers": 1, "decoder_layers": 2,
    "roi_size": 3,
}  # fmt: skip


def test_the_cell_that_points_where_the_text_does_is_the_reddest():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 3, 4)).astype(np.float16)
    image, cosines = likeness(values, 7 * values[:, 1, 2].astype(np.float32))
    assert np.unravel_index(cosines.argmax(), cosines.shape) == (1, 2)
    assert cosines.max() == pytest.approx(1, abs=1e-3)
    pixels = np.asarray(image).astype(int)
    side = image.width // 4
    assert pixels[side + 1, 2 * side + 1].tolist() == [178, 24, 43]
    row, column = np.unravel_index(cosines.argmin(), cosines.shape)
    assert pixels[row * side + 1, column * side + 1].tolist() == [255, 255, 255]
    assert np.isfinite(likeness(np.zeros((5, 3, 4)), np.zeros(5))[1]).all()


def test_an_attention_hides_most_of_the_image_where_it_is_largest():
    weights = np.float32([[0.5, 0.25], [0.25, 0]])
    alpha = np.asarray(attention(weights))[::128, ::128, 3]
    assert alpha[0, 0] > alpha[0, 1] == alpha[1, 0] > alpha[1, 1] == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A drawn world of 20 images: maps in the space of texts, and a LINK student that was trained for two steps."""
    folder = tmp_path_factory.mktemp("looks")
    clip = str(ROOT / "stages/teacher/pico/clip")
    config = {
        "name": "looks",
        "cache": str(folder / "cache"),
        "runs": str(folder / "runs"),
        "dataset": {"kind": "pico", "root": str(folder / "world"), "train": 14, "test": 6},
        "workers": {"executor": "inline"},
        "tables": {
            "detections": {"stage": "ground_truth_boxes"},
            "features": {"stage": "vision_features", "checkpoint": clip, "width": "projected"},
            "full": {"stage": "vision_features", "checkpoint": clip},
            "text": {"stage": "text_embeddings", "checkpoint": clip},
        },
        "student": {
            "method": "link", "labelled": 10, "steps": 2, "warmup_steps": 1, "labelled_per_step": 4, "network": NETWORK,
            "views": ["original"], "kd": {}, "score_threshold": 0.1,
        },
    }  # fmt: skip
    path = folder / "looks.yaml"
    path.write_text(yaml.safe_dump(config))
    workspace = prepare(path)
    run(workspace)
    train_student(workspace)
    return library_of(path)


@pytest.fixture(scope="module")
def server(library: Library) -> Iterator[Served]:
    with served(library) as running:
        yield running


@pytest.fixture
def looks(library: Library) -> Looks:
    return Looks(library)


def student(library: Library) -> str:
    (name,) = library.runs
    return name


@pytest.mark.slow
def test_a_prompt_has_a_vector_only_in_the_space_of_its_own_teacher(library, looks):
    name = next(iter(library.classes))
    vector = looks.prompt_vector(library.tables["features"], name)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-3)
    assert len(vector) == library.tables["features"].answers(0)[0].value.shape[0]
    for table in ("full", "detections"):
        assert looks.texts_of(library.tables[table]) is None
        with pytest.raises(UserError, match=f"the maps of {table} share no space with texts"):
            looks.prompt_vector(library.tables[table], name)
    with pytest.raises(UserError, match="prompt: there is no 'fly bicycle'"):
        looks.prompt_vector(library.tables["features"], "fly bicycle")


@pytest.mark.slow
def test_every_written_detection_has_its_attention_over_its_own_boxes(library, looks):
    name = student(library)
    found = library.errors(name).detections
    for row in range(0, len(found), max(1, len(found) // 20)):
        entry, looked = looks.at(name, row)
        assert entry == library.errors(name).entry[row]
        np.testing.assert_allclose(looked.human_box, found.human_box[row], atol=1e-3)
        np.testing.assert_allclose(looked.object_box, found.object_box[row], atol=1e-3)
        assert list(looked.weights) == [f"layer {n}, {branch}" for n in (1, 2) for branch in ("spatial", "semantic")]
        for weights in looked.weights.values():
            assert weights.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_a_detection_that_is_none_or_whose_boxes_are_not_there_is_told(library, looks, monkeypatch):
    name = student(library)
    with pytest.raises(UserError, match="has no detection 999999"):
        looks.at(name, 999999)
    errors = library.errors(name)
    moved = replace(errors.detections, human_box=errors.detections.human_box + 40)
    monkeypatch.setitem(library._errors, name, replace(errors, detections=moved))
    with pytest.raises(UserError, match="makes no such pair of the boxes that are in the cache today"):
        looks.at(name, 0)


@pytest.mark.slow
def test_the_page_of_an_image_shows_both_and_loads_no_student_before(library, server):
    name = student(library)
    entry = int(library.errors(name).entry[0])
    address = f"/image/{library.entries.address(entry)}"
    page = server.get(f"{address}?run={name}").text
    links = [link.replace("&amp;", "&") for link in re.findall(r'class="look-link" href="([^"#]+)', page)]
    assert links
    assert "Where" not in page
    looked = server.get(links[0]).text
    drawn = [each.replace("&amp;", "&") for each in re.findall(r'class="over" href="([^"]+)"', looked)]
    assert len(drawn) == 4
    for each in drawn:
        answer = server.get(each)
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert server.get(drawn[0].replace("/attention/0/", "/attention/9/")).status == 404
    assert "Likeness of the cells to the prompt" in page
    interaction = next(iter(library.classes)).replace(" ", "+")
    liked = server.get(f"{address}?map=features&column=original&prompt={interaction}").text
    assert re.search(
        r"cosine with “<bdi>a photo of a person .*</bdi>”, no probability: white -?0\.\d+, red 0\.\d+", liked
    )
    (source,) = re.findall(r'<img src="(/map/features/0/[^"]+)"', liked)
    assert server.get(source).headers["content-type"] == "image/png"
    assert server.get(f"{address}?map=full&column=original&prompt={interaction}").status == 400
    assert "32,000 captioned images" in page


TILE, LOOK = 'class="tile panel" href="([^"]+)"', 'look-link" href="([^"#]+)'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "links", "answer"),
    [
        (
            "Where does the student look for the pair that it got wrong?",
            ['href="(/runs)"', r'href="([^"]*sort=found)">worst images', TILE, LOOK],
            'class="over"',
        ),
        ("Which part of this image is like", [TILE, "(choose a prompt)"], "cosine with “"),
    ],
)  # fmt: skip
def test_a_question_about_looks_takes_as_many_clicks_as_the_page_says(library, server, question, links, answer):
    (told,) = re.findall(rf"^\| {re.escape(question)}.*\| (\d+) \|$", (ROOT / "docs/viewer.md").read_text(), re.M)
    assert len(links) == int(told) <= 5
    address = "/"
    for link in links:
        if link == "(choose a prompt)":
            interaction = next(iter(library.classes)).replace(" ", "+")
            address = f"{address}?map=features&column=original&prompt={interaction}"
        else:
            address = re.search(link, server.get(address).text)[1].replace("&amp;", "&")
    assert answer in server.get(address).text
