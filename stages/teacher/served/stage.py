"""What all stages have in common that ask an OpenAI-compatible server: its keys, its fingerprint, one request a cell.

The address is not part of the fingerprint, by the rule that holds for a checkpoint's path: the same model gives the same
answers wherever it is served. What the address cannot say, ``model`` and ``revision`` declare. The server's own name for its
model is compared with them and stored with every commit.
"""

from __future__ import annotations

import base64
import io
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import numpy as np
from pydantic import AfterValidator, Field
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Columns, Count, CountOrNone, Fraction, NotNegative, Positive
from hoi_distill.stages.stage import Batch, Stage, Values
from hoi_distill.stages.teacher.seen_objects import AskedWhere, AsksAboutSeen
from hoi_distill.stages.teacher.served.account import Account
from hoi_distill.stages.teacher.served.endpoint import Endpoint, Request, Server
from hoi_distill.stages.teacher.served.replies import NoAnswer
from hoi_distill.storage.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

INSTALL = "pip install 'hoi-distill[served]'"
JPEG_QUALITY = 95


def _address(given: str) -> str:
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected an address such as http://127.0.0.1:8000/v1, got {given!r}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("a key has no place in an address; name its environment variable in key_variable")
    return given


Answer = TypeVar("Answer")


class AsksServer(Stage):
    """A stage that asks a server: its keys, its fingerprint, its connection, and how an image is sent."""

    is_served = True

    class Config(Stage.Config):
        base_url: Annotated[str, AfterValidator(_address)]
        """Address of an OpenAI-compatible server, with its ``/v1``. Not in the fingerprint."""
        model: str
        """The model's name, as the server is asked for it."""
        columns: Columns
        """The questions, in the very words that are put."""
        revision: str = ""
        """Which weights the server has: a commit, a date, "awq". The server cannot prove it; you declare it."""
        answers_as: str | None = None
        """The server's own name for the model. Default: ``model``, with or without a revision or a date behind it. An answer
        under another name ends the run."""
        key_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
        """The *name* of the environment variable that holds the server's key. Default: the server asks for none."""
        system: str = ""
        """What the server is told before the image and the question; "" tells nothing."""
        temperature: NotNegative = 0.0
        """0: the likeliest token each time."""
        top_p: Fraction = 1.0
        """Tokens are drawn from the likeliest ones of this sum."""
        seed: int | None = None
        """For servers that draw by a seed."""
        max_new_tokens: Count = 128
        """Where an answer is cut."""
        limit_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
        """How the server calls that limit."""
        extra: dict[str, Any] = Field(default_factory=dict)
        """Further fields of a request's body, as the server's manual has them: ``{chat_template_kwargs: {...}}``."""
        image_format: Literal["png", "jpeg"] = "png"
        """How an image is sent: with the very pixels that are decoded, or as a JPEG of quality 95, about a tenth of it."""
        longest_side: Count | None = None
        """Larger images are made smaller before they are sent, to this longest side in pixels."""
        in_flight: Count = 64
        """Requests under way at once, of one worker."""
        requests_per_minute: Positive | None = None
        """The most requests that a run begins; its workers share them."""
        retries: CountOrNone = 8
        """How often a request is asked again that is dropped, refused for the moment or answered with an error."""
        timeout: Positive = 300.0
        """Seconds after which a reply no longer counts."""
        prompt_price: NotNegative = 0.0
        """Price of a million tokens that are sent, in any currency."""
        completion_price: NotNegative = 0.0
        """Price of a million tokens that are written."""
        budget: Positive | None = None
        """The price at which a run stops; its workers share it. Requests that are under way then are still paid."""
        batch_size: Count = 128
        """Images that are asked about together. At the end of a batch some of ``in_flight`` are idle."""

    def __init__(self, config: Config) -> None:
        if config.budget is not None and not (config.prompt_price or config.completion_price):
            raise UserError("budget: without a price nothing is spent; write prompt_price or completion_price too")
        if named := {"model", "messages", "stream", "n"} & set(config.extra):
            raise UserError(f"extra.{min(named)}: is set by this stage; leave it out")
        self.config, self.columns = config, config.columns
        self.batch_size = config.batch_size

    @override
    def parameters(self) -> dict[str, Any]:
        config = self.config
        optional = {"system": config.system, "extra": config.extra, "longest_side": config.longest_side}
        return {
            "teacher": config.model,
            "revision": config.revision,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "seed": config.seed,
            "max_new_tokens": config.max_new_tokens,
            "image_format": config.image_format + (f" {JPEG_QUALITY}" if config.image_format == "jpeg" else ""),
            "image_backend": "pil",
            **{name: value for name, value in optional.items() if value},
        }

    @override
    def provenance(self) -> dict[str, Any]:
        return {"base_url": self.config.base_url}

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "endpoint"}

    @override
    def rehearse(self) -> None:
        _client_is_there()
        self._key()

    def _key(self) -> str:
        """The server's key. Raises UserError where its variable is not set."""
        name = self.config.key_variable
        if name is None:
            return ""
        key = os.environ.get(name, "").strip()
        if not key:
            raise UserError(f"key_variable: the environment variable {name} is not set; export it where workers start")
        return key

    @override
    def open(self, device: str, shared: dict[Any, Any]) -> None:
        _client_is_there()
        config = self.config
        server = Server(
            **{name: getattr(config, name) for name in Server.__dataclass_fields__},
        )
        self.endpoint = Endpoint(server, self._key(), Account(config.prompt_price, config.completion_price))

    @override
    def prepare(self, image: Image.Image) -> str:
        """The image as a data URL, as it is sent."""
        from PIL import Image as pil

        if (size := self.sent_size(*image.size)) != image.size:
            image = image.resize(size, pil.Resampling.BICUBIC)
        file = io.BytesIO()
        if self.config.image_format == "png":
            image.save(file, "PNG", compress_level=1)
        else:
            image.save(file, "JPEG", quality=JPEG_QUALITY)
        return f"data:image/{self.config.image_format};base64,{base64.b64encode(file.getvalue()).decode()}"

    def sent_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels, as an image of this size is sent."""
        longest = self.config.longest_side
        if longest is None or max(width, height) <= longest:
            return width, height
        scale = longest / max(width, height)
        return max(round(width * scale), 1), max(round(height * scale), 1)

    def body(self, image: str, question: str, **fields: Any) -> dict[str, Any]:
        """Arguments of ``chat.completions.create``. ``fields`` replace what the configuration chooses."""
        config = self.config
        said: list[dict[str, Any]] = [{"role": "system", "content": config.system}] if config.system else []
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": question}]
        limit = fields.pop("limit", config.max_new_tokens)
        body = {
            "model": config.model,
            "messages": [*said, {"role": "user", "content": content}],
            "temperature": config.temperature,
            "top_p": config.top_p,
            config.limit_as: limit,
            **({} if config.seed is None else {"seed": config.seed}),
            **({"extra_body": config.extra} if config.extra else {}),
        }
        return body | fields


class Served(AsksAboutSeen, AsksServer):
    """Asks one request a cell. A subclass says what a request is, and what a cell is made of."""

    class Config(AsksServer.Config):
        asked_where: AskedWhere | None = None
        """For columns that are ``verification_questions``: put each only where its object was detected."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        super().__init__(config)
        self.ask_where(config.asked_where, vocabulary)
        self.batch_size = config.batch_size

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        images, turn = self.prepared(batch)[: batch.count], batch.turn
        wanted = np.ones((batch.count, len(columns)), bool) if turn.wanted is None else turn.wanted
        cells = [(row, columns[column]) for row, column in np.argwhere(wanted).tolist()]
        answers = self.endpoint.ask([self.request(images[row], column) for row, column in cells], turn)
        found: dict[tuple[int, str], Any] = {}
        for cell, answer in zip(cells, answers, strict=True):
            if answer is None:
                turn.unasked.add(cell)
            elif isinstance(answer, NoAnswer):
                turn.failures[cell] = str(answer)
            else:
                found[cell] = answer
        rows = range(len(batch.row_ids))
        return {column: self.cells([found.get((row, column)) for row in rows]) for column in columns}

    @abstractmethod
    def request(self, image: str, column: str) -> Request[Any]:
        """The question of one cell. ``image`` is a data URL."""

    @abstractmethod
    def cells(self, answers: Sequence[Any]) -> Values:
        """One column of what :meth:`request` reads; null where an answer is None."""


def _client_is_there() -> None:
    try:
        import openai  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise UserError(f"the openai client cannot be imported ({error}); install it with: {INSTALL}") from None
