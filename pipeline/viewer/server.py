"""The viewer's server: Starlette on the loopback interface. It answers GET and HEAD, and nobody without the token."""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Callable, Mapping
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from hoi_distill.pipeline.viewer.drawing import LONGEST, Encoded, png
from hoi_distill.pipeline.viewer.library import Library
from hoi_distill.pipeline.viewer.maps import SAMPLED, Components, attention, coloured, likeness, similarity
from hoi_distill.pipeline.viewer.pages import TEMPLATES, Pages, PairOf, Point
from hoi_distill.pipeline.viewer.query import Query
from hoi_distill.pipeline.viewer.tables import ViewedTable
from hoi_distill.stages.evaluate.pages import report
from hoi_distill.storage.errors import InputFailure, StorageError, UserError

POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
"""Nothing is loaded from elsewhere, and no script or style that stands in a page is obeyed."""
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts"
)
"""Of a run's report, which holds its styles, its script and its images, and has a policy of its own besides."""
RUN_FILES = ("report.html", "images.html", "log.txt", "evaluation/evaluation.html", "evaluation/per_class.csv")
"""Of a run's folder: what a report links to, and is shown."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """Lets through what has the token, in the address or in the cookie that the address with the token sets.

    A request that names another host is refused: a page of elsewhere may have led the browser here by a name of its own.
    """

    def __init__(self, app: Any, token: str, port: int, hosts: tuple[str, ...]) -> None:
        """
        Args:
            app: what is guarded.
            token: the secret.
            port: of the server. It is part of the cookie's name, because cookies know no ports.
            hosts: names that the server goes by; () allows every name.
        """
        self.app, self.token, self.hosts = app, token, hosts
        self.cookie = f"hoi-distill-{port}"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in _HEADERS if name not in names),
                ]
            await send(message)

        await (refusal or self.app)(scope, receive, answer)

    def _refusal(self, scope: Any, headers: Mapping[str, str]) -> Response | None:
        """The answer to a request that is not let through; None for one that is."""
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        if self.hosts and host not in self.hosts:
            return Response("wrong host", 403)
        if scope["method"] not in ("GET", "HEAD"):
            return Response("read only", 405)
        parts = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(parts).get("token")
        if given is not None and hmac.compare_digest(given.encode(), self.token.encode()):
            rest = urlencode([(name, value) for name, value in parts if name != "token"])
            clean = RedirectResponse(scope["path"] + (f"?{rest}" if rest else ""), 303)
            clean.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
            return clean
        cookie = SimpleCookie(headers.get("cookie", "")).get(self.cookie)
        if cookie is None or not hmac.compare_digest(cookie.value.encode(), self.token.encode()):
            return Response(
                "Open the address that `hoi-distill view` printed: it has a token that this one lacks.", 403
            )
        return None


_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Site:
    """The addresses of the viewer."""

    def __init__(self, library: Library) -> None:
        """
        Args:
            library: what is looked at.
        """
        self.library, self.pages = library, Pages(library)
        self.images = Encoded(library.entries)
        self._components: dict[tuple[str, int], Components] = {}
        pages = Path(report.__file__).parent / "templates"
        self._style = "\n".join(path.read_text() for path in (pages / "page.css", TEMPLATES / "viewer.css"))
        self._script = (TEMPLATES / "viewer.js").read_text()

    def routes(self) -> list[Route]:
        """Every address."""
        named: dict[str, Callable[[Request], str | Response]] = {
            "/": self.grid,
            "/image/{split}/{row}": self.image,
            "/classes": self.classes,
            "/runs": lambda _: self.pages.runs(),
            "/run/{name:path}": self.run,
            "/tables": lambda _: self.pages.tables(),
            "/report/{name:path}": self.report,
            "/thumb/{split}/{row}": self.thumb,
            "/file/{split}/{row}": self.file,
            "/attention/{number:int}/{split}/{row}": self.attention,
            "/map/{table}/{number:int}/{split}/{row}": self.map,
            "/favicon.ico": lambda _: Response(status_code=204),
            "/viewer.css": lambda _: _lasting(self._style.encode(), "text/css"),
            "/viewer.js": lambda _: _lasting(self._script.encode(), "text/javascript"),
        }
        return [Route(path, self._page(make)) for path, make in named.items()]

    def _page(self, make: Callable[[Request], str | Response]) -> Callable[[Request], Response]:
        """An address whose errors are pages. Starlette runs it in a thread."""

        def answer(request: Request) -> Response:
            try:
                made = make(request)
                return made if isinstance(made, Response) else _html(made)
            except UserError as error:
                return _html(self.pages.error(str(error)), 404 if isinstance(error, _Missing) else 400)
            except (StorageError, InputFailure, OSError) as error:
                return _html(self.pages.error(str(error)), 500)

        return answer

    def _entry(self, request: Request) -> int:
        entry = self.library.entries.find(request.path_params["split"], request.path_params["row"])
        if entry is None:
            raise _Missing("There is no such image in this dataset.")
        return entry

    def grid(self, request: Request) -> str:
        """The images of a query."""
        return self.pages.images(Query.parse(dict(request.query_params)))

    def image(self, request: Request) -> str:
        """One image."""
        given = dict(request.query_params)
        table, column, x, y, prompt = (given.pop(key, "") for key in ("map", "column", "at.x", "at.y", "prompt"))
        point = Point(table, column, _whole(x), _whole(y), prompt) if table else None
        looks, row = given.pop("look", ""), given.pop("pair", "")
        pair = PairOf(looks, _row(row)) if looks else None
        return self.pages.image(self._entry(request), Query.parse(given), point, pair)

    def attention(self, request: Request) -> Response:
        """Where a student looks for a pair, in one layer and branch, to be laid over the image."""
        run, row = (request.query_params.get(part, "") for part in ("run", "pair"))
        entry, looked = self.pages.looks.at(run, _row(row))
        layers, number = list(looked.weights.values()), request.path_params["number"]
        if entry != self._entry(request) or number >= len(layers):
            raise _Missing("There is no such attention.")
        return _lasting(png(attention(layers[number])), "image/png")

    def classes(self, request: Request) -> str:
        """Every interaction."""
        return self.pages.classes(Query.parse(dict(request.query_params)))

    def run(self, request: Request) -> str:
        """A run's figures."""
        return self.pages.run(request.path_params["name"])

    def report(self, request: Request) -> Response:
        """A page or a text of a run, as it was written. The name of a run alone leads to its report."""
        name = request.path_params["name"]
        if name in self.library.runs:
            return RedirectResponse(f"/report/{quote(name)}/report.html")
        for file in RUN_FILES:
            if name.endswith(f"/{file}"):
                page = self.library.run(name.removesuffix(f"/{file}")).folder / file
                if not page.is_file():
                    break
                text = page.read_bytes()
                kind = "text/html" if file.endswith(".html") else "text/plain"
                return Response(text, media_type=kind, headers={"content-security-policy": REPORT_POLICY})
        raise _Missing(f"There is no page {name!r} of a run.")

    def thumb(self, request: Request) -> Response:
        """An image of the grid."""
        return _lasting(*self.images.thumb(self._entry(request)))

    def file(self, request: Request) -> Response:
        """An image, large."""
        return _lasting(*self.images.encoded(self._entry(request), LONGEST))

    def map(self, request: Request) -> Response:
        """A drawn feature map, or the likeness of its cells to one."""
        entry, name, number = (self._entry(request), *(request.path_params[key] for key in ("table", "number")))
        table = self.library.tables.get(name)
        if table is None or not 0 <= number < len(table.columns):
            raise _Missing(f"There is no map {name!r}.")
        with self.library.lock:
            answer = table.answers(entry)[number]
            if not isinstance(answer.value, np.ndarray) or answer.value.ndim != 3:
                raise _Missing(f"Table {name} holds no map of this image.")
            if "row" in request.query_params:
                asked = (_whole(request.query_params.get(part, "")) for part in ("row", "column"))
                at = [min(each, most - 1) for each, most in zip(asked, answer.value.shape[1:], strict=True)]
                return Response(png(similarity(answer.value, *at)[0]), media_type="image/png")
            if prompt := request.query_params.get("prompt"):
                drawn, _ = likeness(answer.value, self.pages.looks.prompt_vector(table, prompt))
                return Response(png(drawn), media_type="image/png")
            if (name, number) not in self._components:
                self._components[name, number] = components_of(table, number)
        return _lasting(png(coloured(answer.value, self._components[name, number])), "image/png")


def components_of(table: ViewedTable, number: int) -> Components:
    """The colours of one column's maps, from :data:`~hoi_distill.pipeline.viewer.maps.SAMPLED` images over the dataset."""
    assert table.table is not None
    filled = np.flatnonzero(table.state.filled[:, number])
    rows = filled[np.unique(np.linspace(0, len(filled) - 1, SAMPLED).astype(int))]
    return Components.of(
        table.table.read(table.cells.take(rows).select([table.columns[number]]))[table.columns[number]]
    )


class _Missing(UserError):
    """An address that there is not."""


def _html(page: str, status: int = 200) -> Response:
    return HTMLResponse(page.encode("utf-8", "backslashreplace"), status)


def _lasting(content: bytes, kind: str) -> Response:
    return Response(content, media_type=kind, headers={"cache-control": "private, max-age=3600"})


def _row(text: str) -> int:
    """A row of a file of detections; -1, which no file has, where it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1


def _whole(text: str) -> int:
    return int(text[:6]) if text.isascii() and text.isdigit() else 0


def application(library: Library, token: str, port: int, hosts: tuple[str, ...] = LOOPBACK) -> Guard:
    """The viewer as an ASGI application.

    Args:
        library: what is looked at.
        token: the secret.
        port: of the server.
        hosts: names that the server goes by; () allows every name.
    """
    return Guard(Starlette(routes=Site(library).routes()), token, port, hosts)


def serve(library: Library, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until an interrupt.

    Args:
        library: what is looked at.
        host: the interface.
        port: 0 takes a free one.
        announce: is told the address with its token, once connections are taken.

    Raises:
        UserError: the port cannot be bound.
    """
    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen(128)  # who opens the address before the server is up waits, and is not turned away
        except OSError as error:
            raise UserError(
                f"--host {host} --port {port}: {error.strerror}; give another, 0 takes a free port"
            ) from None
        port = bound.getsockname()[1]
        token = secrets.token_urlsafe(16)
        name = f"[{host}]" if ":" in host else host
        hosts = (*LOOPBACK, name) if host not in ("0.0.0.0", "::") else ()
        config = uvicorn.Config(
            application(library, token, port, hosts),
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
        )
        announce(f"http://{name}:{port}/?token={token}")
        uvicorn.Server(config).run(sockets=[bound])
