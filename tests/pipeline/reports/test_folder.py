"""``hoi-distill page``: where it cannot write it says so before it works, and a last good page outlives any failure."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from hoi_distill.pipeline.reports import folder as page_module
from hoi_distill.pipeline.reports.folder import write_page
from hoi_distill.storage.errors import UserError
from tests.fixtures.toy_stages import paint, run

CAPTIONER = Path(__file__).parents[3] / "stages" / "teacher" / "pico" / "caption"


@pytest.fixture
def told(album):
    """An album whose captions are in the cache, with an image whose name is no UTF-8."""
    paint(Path(os.fsdecode(os.fsencode(album.folder) + b"/Mu\xf1oz.png")), 9)
    album.config["tables"] = {
        "captions": {"stage": "blip_captions", "checkpoint": str(CAPTIONER), "columns": ["a photo of"]}
    }
    album.write()
    run(album.workspace())
    return album


def test_a_name_that_is_no_utf8_is_shown_with_its_byte(told, tmp_path):
    write_page(told.workspace(), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Mu\\xf1oz.png" in text
    assert "000.png" in text


def test_a_page_of_an_incomplete_cache_says_what_is_missing_and_what_fills_it(told, tmp_path, capsys):
    write_page(told.workspace(), tmp_path / "page.html")
    assert "warning" not in capsys.readouterr().err
    paint(told.folder / "new.png", 11)
    write_page(told.workspace(), tmp_path / "page.html")
    assert "warning: empty cells (1 of captions) are left out of the page; `hoi-distill run " in capsys.readouterr().err


def test_the_last_good_page_outlives_a_failure(told, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("the last good page")
    workspace = told.workspace()
    (told.folder / "000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"000\.png"):
        write_page(workspace, page)
    assert page.read_text() == "the last good page"


@pytest.mark.parametrize("out", ["taken/page.html", "."])
def test_a_place_that_cannot_be_written_is_told_before_the_work(album, tmp_path, monkeypatch, out):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr(page_module, "plan_all", lambda workspace: pytest.fail("it has begun to work"))
    with pytest.raises(UserError, match=r"^--out "):
        write_page(album.workspace(), tmp_path / out)


def test_a_disk_that_is_full_is_called_full(told):
    with pytest.raises(UserError, match=r"/dev/full: cannot be written: the disk is full"):
        write_page(told.workspace(), Path("/dev/full"))


def test_a_folder_of_many_images_has_several_pages_that_lead_to_each_other(told, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "PER_PAGE", 3)
    write_page(told.workspace(), tmp_path / "my page.html")
    files = sorted(path.name for path in tmp_path.glob("my page*.html"))
    texts = {name: (tmp_path / name).read_text() for name in files}
    count = len(list(told.folder.glob("*.png")))
    assert len(files) == -(-count // 3) > 2
    assert sum(text.count("<article") for text in texts.values()) == count
    titles = [title for name in files for title in re.findall(r"<h2>(.*?\.png)</h2>", texts[name])]
    assert len(set(titles)) == count
    for name, text in texts.items():
        links = {unquote(link) for link in re.findall(r'href="(my%20page[^"]*)"', text)}
        assert links <= set(files)
        assert links >= {"my page.html", files[-1]} - {name}
        assert ("What was read" in text) == (name == "my page.html")
    assert 'rel="next" href="my%20page-2.html"' in texts["my page.html"]


def test_the_first_page_is_written_when_all_others_are(told, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "PER_PAGE", 3)
    workspace = told.workspace()
    (told.folder / "000.png").unlink()  # of the first page
    with pytest.raises(FileNotFoundError, match=r"000\.png"):
        write_page(workspace, tmp_path / "page.html")
    assert (tmp_path / "page-2.html").exists()
    assert not (tmp_path / "page.html").exists()


def test_what_the_captioner_was_trained_on_stands_on_the_page(told, tmp_path):
    write_page(told.workspace(), tmp_path / "page.html")
    assert "<dt>Teacher of captions</dt><dd>trained on 64,000 captioned images" in (tmp_path / "page.html").read_text()
