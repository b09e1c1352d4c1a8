"""The viewer's server: who is let in, what a page may load, and that nothing is written."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from hoi_distill.pipeline.viewer.server import serve
from hoi_distill.storage.errors import UserError
from tests.fixtures.viewed import TOKEN

A = "viewed/000000000000"
PAGES = [
    "/",
    "/classes",
    "/runs",
    f"/run/{A}",
    f"/report/{A}",
    "/tables",
    f"/?run={A}&kind=missed",
    f"/classes?run={A}",
]


def image_of(server, split: str = "test") -> str:
    return re.search(rf'href="(/image/{split}/[0-9a-f]{{32}})', server.get(f"/?split={split}").text)[1]


@pytest.mark.parametrize("path", [*PAGES, "/viewer.css", "/thumb/test/00", "/nothing"])
def test_nobody_is_let_in_without_the_token(server, path):
    answer = server.get(path, token=False)
    assert answer.status == 403
    assert "token" in answer.text
    assert server.get(f"{path}{'&' if '?' in path else '?'}token=wrong", token=False).status == 403


def test_the_token_leaves_the_address_for_a_cookie_that_scripts_cannot_read(server):
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", f"/?split=test&token={TOKEN.replace(' ', '+')}")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("location")) == (303, "/?split=test")
    assert "HttpOnly" in answer.getheader("set-cookie")
    assert "SameSite=lax" in answer.getheader("set-cookie")


def test_another_host_name_is_refused(server):
    assert server.get("/", Host=f"evil.example:{server.port}").status == 403
    assert server.get("/", Host=f"localhost:{server.port}").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_but_reading_is_answered(server, method):
    assert server.get("/", method=method).status == 405


@pytest.mark.parametrize("path", PAGES)
def test_every_page_forbids_to_load_from_elsewhere(server, path):
    answer = server.get(path)
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; img-src")
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    if not path.startswith("/report"):
        assert "unsafe" not in policy
        assert not re.search(r"\sstyle=|<style|\son\w+=|https?://", answer.text)
        assert re.findall(r"<script[^>]*>", answer.text) == ['<script src="/viewer.js" defer>']


def test_an_image_has_its_pairs_and_every_table_with_fingerprint_and_time(server, library):
    answer = server.get(f"{image_of(server)}?run={A}")
    assert answer.status == 200
    for name, table in library.tables.items():
        assert f'id="{name}"' in answer.text
        assert table.fingerprint in answer.text
    assert answer.text.count("computed <bdi>20") == len(library.tables)
    assert "Student A" in answer.text
    assert "uncalibrated" in answer.text


def test_next_and_previous_stay_among_the_images_asked_for(server):
    listed = re.findall(r'href="(/image/[^"]+)"', server.get("/?split=test").text)
    second = server.get(listed[1].replace("&amp;", "&")).text
    assert re.search(r'rel="prev" href="([^"]+)"', second)[1] == listed[0]
    assert re.search(r'rel="next" href="([^"]+)"', second)[1] == listed[2]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/?verb=rid", 400),
        ("/?page=0", 400),
        ("/?nonsense=1", 400),
        ("/image/test/" + "0" * 32, 404),
        ("/image/moon/zz", 404),
        ("/run/no/such", 400),
        ("/report/..%2f..%2fetc/passwd", 404),
        ("/thumb/test/..%2f..", 404),
        ("/map/itm/0/test/" + "0" * 32, 404),
        ("/map/nothing/0/test/" + "0" * 32, 404),
    ],
)
def test_a_wrong_address_is_a_page_that_says_so(server, path, status):
    answer = server.get(path)
    assert answer.status == status
    assert "Traceback" not in answer.text


def test_a_file_that_is_gone_is_told_and_the_rest_of_the_page_stands(server, library):
    file = Path(library.workspace.dataset["train"].path[7])
    held = file.read_bytes()
    file.unlink()
    try:
        address = image_of(server, "train").rpartition("/")[0] + "/" + library.entries.row_ids[7].tobytes().hex()
        assert server.get(address).status == 200
        assert server.get(address.replace("/image/", "/file/")).status == 500
    finally:
        file.write_bytes(held)


def test_looking_writes_nothing_in_the_cache(server, library):
    def held() -> dict[str, int]:
        tables = library.workspace.config.cache / "tables"
        return {str(path): path.stat().st_mtime_ns for path in tables.rglob("*") if path.is_file()}

    before = held()
    for path in [*PAGES, image_of(server)]:
        server.get(path)
    assert held() == before


def test_a_port_that_is_taken_is_told_in_one_line(library):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: Address already in use; give another"):
            serve(library, "127.0.0.1", port, print)


def test_the_address_is_told_only_when_it_takes_connections(library):
    def knock(address: str) -> None:
        host, port = re.fullmatch(r"http://(.+):(\d+)/\?token=.+", address).groups()
        socket.create_connection((host, int(port)), timeout=5).close()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(library, "127.0.0.1", 0, knock)
