"""The pages as a browser shows them, at desktop and phone width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.chromium import EXECUTABLE, Chromium
from tests.fixtures.sample_pages import MARKUP

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on the PATH (apt-get install chromium)"),
]
SIZES = [(kind, width) for kind in ("report", "folder", "experiments", "evaluation") for width in (1280, 390)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as running:
        yield running


@pytest.mark.parametrize(("kind", "width"), SIZES)
def test_pages_load_silently_and_fit(kind: str, width: int, browser: Chromium, pages: dict[str, Path]):
    browser.open(pages[kind], width)
    assert browser.run("window.innerWidth") == width
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints == []
    assert browser.requests == [pages[kind].as_uri()]
    assert browser.run("document.querySelector('h1').getBoundingClientRect().height") > 20


@pytest.mark.parametrize("kind", ["report", "folder", "experiments", "evaluation"])
def test_markup_is_text_in_the_browser(kind: str, browser: Chromium, pages: dict[str, Path]):
    browser.open(pages[kind], 1280)
    assert browser.run("document.querySelectorAll('[onerror]').length") == 0
    assert MARKUP in browser.run("document.body.innerText")


def test_images_are_rendered(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["folder"], 390)
    sizes = browser.run(
        "Promise.all([...document.querySelectorAll('img.photo, svg.picture image')].map(i => {"
        "const p = new Image(); p.src = i.getAttribute('src') || i.getAttribute('href');"
        "return p.decode().then(() => p.naturalWidth) }))"
    )
    assert len(sizes) == 5
    assert min(sizes) > 0
    browser.open(pages["report"], 390)
    drawn = browser.run(
        "Promise.all([...document.querySelectorAll('svg.picture image')].map(i => {"
        "const p = new Image(); p.src = i.getAttribute('href');"
        "return p.decode().then(() => [p.naturalWidth, i.getBoundingClientRect().width]) }))"
    )
    assert len(drawn) == 6
    assert browser.run("document.querySelectorAll('svg.picture use').length") == 6, "the other drawing of each image"
    assert all(natural > 0 and 250 < shown <= 362 for natural, shown in drawn)


def test_words_on_images_are_legible_on_a_phone(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["report"], 390)
    heights = browser.run("[...document.querySelectorAll('.chip')].map(t => t.getBoundingClientRect().height)")
    assert min(heights) >= 10
    overflowing = browser.run(
        "[...document.querySelectorAll('.chip')].filter(t => t.getBoundingClientRect().right"
        " > t.previousElementSibling.getBoundingClientRect().right).length"
    )
    assert overflowing == 0


def test_classes_are_sorted_on_a_click(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["report"], 1280)
    column = "[...document.querySelectorAll('.classes tbody tr')].map(r => r.cells[{}].dataset.value)"
    precision = [float(value) for value in browser.run(column.format(1))]
    assert precision == sorted(precision, reverse=True)
    for _ in range(2):
        browser.run("document.querySelectorAll('.classes th button')[4].click()")
    counts = [float(value) for value in browser.run(column.format(4))]
    assert counts == sorted(counts)
    browser.run("document.querySelectorAll('.classes th button')[0].click()")
    names = browser.run(column.format(0))
    assert names == sorted(names, reverse=True)
    assert browser.complaints == []


SHOWN = "document.querySelector('#detail h3').textContent"
PRESSED = "[...document.querySelectorAll('.pick[aria-current]')].map(b => b.dataset.class)"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_class_is_chosen_by_its_name(width: int, browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["evaluation"], width)
    names = browser.run("[...document.querySelectorAll('.classes .pick')].map(b => b.textContent)")
    assert browser.run(SHOWN) in names
    chosen = next(name for name in names if name.startswith("read"))
    browser.run(f"[...document.querySelectorAll('.classes .pick')].find(b => b.textContent === {chosen!r}).click()")
    assert browser.run(SHOWN) == chosen
    assert len(set(browser.run(PRESSED))) == 1
    assert browser.run("document.querySelectorAll('#detail svg path.curve').length") == 1
    assert browser.run("document.querySelectorAll('#detail .mix li').length") > 1
    box = browser.run("(b => [b.top, b.left, b.right])(document.getElementById('detail').getBoundingClientRect())")
    assert -1 <= box[0] < 900
    assert 0 <= box[1] < box[2] <= width
    assert browser.complaints == []


def test_a_class_of_which_nothing_was_found_says_so(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["evaluation"], 1280)
    browser.run("document.querySelector('.pick[data-class=\"7\"]').click()")
    assert browser.run("document.querySelector('#detail svg').textContent").endswith("nothing found")


def test_names_with_markup_stay_text_when_they_are_chosen(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["evaluation"], 1280)
    browser.run("document.querySelector('.pick[data-class=\"0\"]').click()")
    assert browser.run(SHOWN).startswith("<i onerror=x>")
    assert browser.run("document.querySelectorAll('[onerror]').length") == 0


def test_typing_filters_the_classes(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["evaluation"], 1280)
    browser.run(
        "(f => { f.value = 'bear SIT'; f.dispatchEvent(new Event('input')) })(document.getElementById('filter'))"
    )
    left = browser.run(
        "[...document.querySelectorAll('.classes tbody tr')].filter(r => r.offsetParent).map(r => r.cells[0].dataset.value)"
    )
    assert left == ["sit on teddy bear"]
    assert browser.complaints == []


def test_small_text_of_the_evaluation_has_contrast(browser: Chromium, pages: dict[str, Path]):
    browser.open(pages["evaluation"], 1280)
    colours = browser.run(
        "[...document.querySelectorAll('main *')].filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))"
        ".map(e => { let b = e; const at = n => getComputedStyle(n).backgroundColor;"
        " while (at(b) === 'rgba(0, 0, 0, 0)') b = b.parentElement; return [getComputedStyle(e).color, at(b)] })"
    )

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for text, ground in {tuple(pair) for pair in colours}:
        low, high = sorted((luminance(text), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
