"""The viewer in Chromium: it fits, it is quiet, keys work, and 50 hostile texts and names are shown as text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.viewer_world import Plot, write_world
from hoi_distill.pipeline.viewer.library import Library
from hoi_distill.stages.data.vocabulary import Vocabulary
from tests.fixtures.chromium import EXECUTABLE, Chromium
from tests.fixtures.hostile import CAPTIONS, NAMES, VERBS
from tests.fixtures.viewed import Served, library_of, served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on the PATH (apt-get install chromium)"),
]
ROOT = Path(__file__).parents[2]
A, B = "viewed/000000000000", "viewed/000000000001"
PATHS = [
    "/",
    f"/?run={A}&against={B}&sort=students",
    "/classes",
    f"/classes?run={A}&against={B}",
    "/runs",
    f"/run/{A}",
    "/tables",
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    actions = [(thing, verb, verb) for thing in ("bicycle", "dog") for verb in (*VERBS, "hold")]
    plot = Plot(
        250, Vocabulary.from_actions(actions, "the tests"), captions=CAPTIONS, names=NAMES, teachers=2, fails=50
    )
    return library_of(write_world(tmp_path_factory.mktemp("hostile"), plot))


@pytest.fixture(scope="module")
def server(library: Library) -> Iterator[Served]:
    with served(library) as running:
        yield running


@pytest.fixture(scope="module")
def browser(server: Served) -> Iterator[Chromium]:
    with Chromium() as running:
        running.visit(server.first, 1400)
        yield running


def quiet(browser: Chromium, server: Served) -> bool:
    assert browser.complaints == []
    assert [each for each in browser.requests if not each.startswith(f"{server.root}/")] == []
    assert browser.run("document.querySelectorAll('[onerror], [onload], iframe, main script, main style').length") == 0
    return True


def image(library: Library, entry: int) -> str:
    return f"/image/{library.entries.address(entry)}"


@pytest.mark.parametrize("width", [1400, 390])
def test_pages_fit_and_load_silently(browser, server, library, width):
    for path in [*PATHS, f"{image(library, 200)}?run={A}&against={B}"]:
        browser.visit(server.root + path, width)
        assert browser.run("document.documentElement.scrollWidth") <= width, path
        assert browser.run("document.querySelector('h1').getBoundingClientRect().height") > 20
        assert quiet(browser, server)


def test_every_hostile_caption_is_shown_as_text(browser, server, library):
    for entry, caption in enumerate(CAPTIONS, start=1):
        number = entry if entry % 50 else entry + 50  # of which the caption is a failure
        browser.visit(server.root + image(library, number), 1400)
        held = library.tables["captions"].answers(number)[1].value["text"]
        assert held == CAPTIONS[number % len(CAPTIONS)], caption
        told = browser.run("[...document.querySelectorAll('#captions blockquote > bdi')].map(b => b.textContent)")
        seen = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", held)
        assert told[-1] == seen
        assert quiet(browser, server)


def test_every_hostile_name_is_shown_as_text_on_its_tile_and_page(browser, server, library):
    tiles = []
    for path in ("/?split=test", "/?split=test&page=2", "/?text=oz.png"):
        browser.visit(server.root + path, 390)
        tiles += browser.run("[...document.querySelectorAll('.tile .caption bdi')].map(b => b.textContent)")
        assert quiet(browser, server)
    names = library.entries.names.to_pylist()
    for name in NAMES:
        written = os.fsencode(name).decode("utf-8", "backslashreplace")
        shown = written.replace("\x1b", "\\x1b")
        assert shown in tiles
        browser.visit(server.root + image(library, names.index(written)), 1400)
        assert browser.run("document.querySelector('h1 bdi').textContent") == shown
        assert quiet(browser, server)


def test_hostile_classes_filter_by_their_own_links(browser, server, library):
    browser.visit(f"{server.root}/classes", 1400)
    links = browser.run("[...document.querySelectorAll('tbody td:first-child a')].map(a => [a.textContent, a.href])")
    assert sorted(name for name, _ in links) == sorted(library.classes)
    for name, address in links[:5]:
        browser.visit(address, 1400)
        assert browser.run("document.querySelector('[name=interaction]').value") == name
        assert browser.run("document.querySelectorAll('.tile').length") > 0
        assert quiet(browser, server)


def press(browser: Chromium, key: str) -> None:
    browser.run(f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: {json.dumps(key)}, bubbles: true}}))")


def test_keys_lead_through_the_images_and_hide_drawings(browser, server, library):
    browser.visit(server.root + image(library, 210), 1400)
    before = browser.run("performance.timeOrigin")
    press(browser, "j")
    browser.arrive(before)
    assert browser.run("location.pathname") == image(library, 211)
    press(browser, "1")
    assert browser.run("getComputedStyle(document.querySelector('[data-layer=\"1\"] .picture')).display") == "none"
    press(browser, "b")
    assert browser.run("getComputedStyle(document.querySelector('[data-layer=\"2\"] .picture rect')).display") == "none"
    press(browser, "?")
    assert browser.run("document.getElementById('help').open")
    browser.run("document.getElementById('help').close()")
    before = browser.run("performance.timeOrigin")
    press(browser, "u")
    browser.arrive(before)
    assert browser.run("location.pathname") == "/"
    press(browser, "/")
    assert browser.run("document.activeElement.name") == "text"


def test_choosing_a_filter_shows_what_it_finds(browser, server):
    browser.visit(f"{server.root}/", 1400)
    before = browser.run("performance.timeOrigin")
    chosen = "(s => { s.value = 'test'; s.dispatchEvent(new Event('change', {bubbles: true})) })"
    browser.run(f"{chosen}(document.querySelector('[name=split]'))")
    browser.arrive(before)
    assert browser.run("location.search") == "?split=test"
    assert browser.run("document.querySelector('h1').textContent") == "49 of 250 images"


def test_a_table_is_sorted_on_a_click(browser, server):
    browser.visit(f"{server.root}/run/{A}", 1400)
    column = "[...document.querySelectorAll('.sortable tbody tr')].map(r => Number(r.cells[3].dataset.value))"
    browser.run("document.querySelectorAll('.sortable th button')[3].click()")
    counts = browser.run(column)
    assert counts == sorted(counts, reverse=True)


STALE = "detections stale"
QUESTIONS = {
    "Which rare classes does the teacher contradict?": (
        [
            "nav a[href='/classes']",
            "th:nth-child(6) button",
            "th:nth-child(6) button",
            "tbody tr:first-child td:nth-child(6) a",
        ],
        ".tile .value",
    ),
    "What changed between these two students?": (
        ["nav a[href='/runs']", "tbody tr:first-child a", "[name=against]=" + A],
        ".tile .value",
    ),
    "Why is this cell stale?": (["[name=cells]=" + STALE, ".tile"], "#detections .lacks"),
    "Which images failed, and why?": (["[name=cells]=captions failed", ".tile"], "#captions .lacks"),
    "What does the student say of a pair annotated": (
        ["nav a[href='/runs']", "tbody tr:first-child a", "a[href*='&on=']"],
        ".tile .faults",
    ),
    "Which pairs of": (["nav a[href='/runs']", "tbody tr:first-child a", "td a[href*='kind=missed']"], ".tile .faults"),
    "What did the captioner say of kites?": (["[name=text]=spaces"], ".tile"),
    "Which phrases of this caption became no triplet?": ([".tile"], "#captions blockquote"),
    "Where do two teachers disagree about": (
        ["[name=interaction]=hold dog", "[name=other]=other_itm", "[name=sort]=tables", "[name=down]=1"],
        ".tile .value",
    ),
    "Who computed this score, when, on what?": ([".tile"], "#itm .made"),
}
"""What is clicked, or set, for each question of docs/viewer.md, and what then answers it."""


@pytest.fixture(scope="module")
def stale(library: Library) -> Iterator[Served]:
    """A server of the world after the annotation of a pair was edited."""
    file = Path(str(library.workspace.config.dataset.annotations))
    document = json.loads(file.read_text())
    document["pictures"][3]["pairs"][0]["human_box"] = [1, 1, 20, 60]
    file.write_text(json.dumps(document))
    with served(library_of(library.workspace.path)) as running:
        yield running


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_takes_as_many_clicks_as_the_page_says(browser, stale, question):
    steps, answer = QUESTIONS[question]
    (told,) = re.findall(rf"^\| {re.escape(question)}.*\| (\d+) \|$", (ROOT / "docs/viewer.md").read_text(), re.M)
    assert len(steps) == int(told) <= 5
    browser.visit(stale.first, 1400)
    for step in steps:
        selector, chosen, value = step.rpartition("=") if step.startswith("[name") else (step, "", "")
        before = browser.run("performance.timeOrigin")
        found = f"document.querySelector({json.dumps(selector)})"
        if not chosen or value == "1":
            browser.run(f"{found}.click()")
        elif value:
            browser.run(f"{found}.value = {json.dumps(value)}; {found}.form.requestSubmit()")
        if (value or not chosen) and "button" not in step:
            browser.arrive(before)
    assert browser.run(f"document.querySelectorAll({json.dumps(answer)}).length") > 0
    assert quiet(browser, stale)
