"""Answers about pairs of a model behind a server, in the cells of the local models' answers about pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.keys import Count
from hoi_distill.stages.stage import Batch, Values
from hoi_distill.stages.teacher.pair_questions import answer_cells
from hoi_distill.stages.teacher.pair_words import AsksInWords, Coordinates, PairQuestion, written
from hoi_distill.stages.teacher.served.endpoint import Request
from hoi_distill.stages.teacher.served.replies import NoAnswer, first_token_logs
from hoi_distill.stages.teacher.served.stage import INSTALL, AsksServer
from hoi_distill.storage.shards.cells import cells

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["INSTALL", "ServedPairAnswers"]


class ServedPairAnswers(AsksInWords, AsksServer):
    """Answers of a model behind a server about each human-object pair, one request a question. Each column is a verb.

    A cell is that of stage ``pair_answers``; the server must give log-probabilities. A variant of yes or no that it does not list
    counts as 0, and a word without any listed variant as much as the last token that it lists, which is the most it can be. One
    question without an answer makes its whole cell a recorded failure.
    """

    class Config(AsksInWords.Config, AsksServer.Config):
        coordinates: Coordinates = "pixels"
        """How a box is written: pixels of the image as it is sent (Qwen2.5-VL), thousandths of its sides (Qwen2-VL), or fractions
        of them with two decimals (LLaVA). The server cannot say what its model was taught."""
        top_logprobs: Count = 20
        """How many first tokens the server lists; hosted models list 20 at most."""

    def __init__(self, config: Config, vocabulary: Vocabulary) -> None:
        AsksServer.__init__(self, config)
        AsksInWords.__init__(self, config, vocabulary)
        self.coordinates, self.top_logprobs = config.coordinates, config.top_logprobs

    @override
    def parameters(self) -> dict[str, Any]:
        told = {"top_logprobs": self.top_logprobs, "answer": "log-probabilities of the first token"}
        return {**AsksServer.parameters(self), **self.words(self.coordinates), **told}

    @override
    def provenance(self) -> dict[str, Any]:
        return {**AsksServer.provenance(self), **AsksInWords.provenance(self)}

    @override
    def prepare(self, image: Image.Image) -> Any:
        """The image as it is sent, or as it is while each pair has a view of its own."""
        return AsksServer.prepare(self, image) if self.view == "whole" else image

    @override
    def compute(
        self, batch: Batch, columns: Sequence[str], inputs: Mapping[str, Mapping[str, Values]]
    ) -> dict[str, Values]:
        images, turn = self.prepared(batch)[: batch.count], batch.turn
        wanted = np.ones((batch.count, len(columns)), bool) if turn.wanted is None else turn.wanted
        found = cells(inputs[self.instances]["value"])
        asked = [
            (row, each)
            for row in range(batch.count)
            for each in self.asked_of(found(row), [columns[at] for at in np.flatnonzero(wanted[row]).tolist()])
        ]

        @lru_cache(maxsize=1)  # the questions about a pair stand together
        def seen(row: int, pair: tuple[int, int]) -> str:
            image = images[row]
            return image if self.view == "whole" else AsksServer.prepare(self, self.view_of(image, found(row), pair))

        requests = [self.request(partial(seen, row, each.pair), each.text) for row, each in asked]
        answers = self.endpoint.ask(requests, turn, cells=int(wanted.sum()))
        told: dict[tuple[int, str], list[tuple[int, tuple[float, float]]]] = {
            (row, columns[at]): [] for row, at in np.argwhere(wanted).tolist()
        }
        for (row, each), answer in zip(asked, answers, strict=True):
            cell = row, each.column
            if answer is None:
                turn.unasked.add(cell)
            elif isinstance(answer, NoAnswer):
                turn.failures[cell] = str(answer)
            else:
                told[cell].append((each.number, answer))
        for cell in turn.unasked:  # what a question of the cell has failed at may go well the next time
            turn.failures.pop(cell, None)
        none = turn.unasked | set(turn.failures)
        return {
            column: _column(
                [None if (row, column) in none else told.get((row, column)) for row in range(len(batch.row_ids))]
            )
            for column in columns
        }

    def asked_of(self, instances: Mapping[str, Any] | None, columns: Sequence[str]) -> list[PairQuestion]:
        """All questions about an image, by pair, then by column.

        Args:
            instances: its cell of the table of boxes; None: it has none.
            columns: which questions.
        """
        if instances is None:
            return []
        boxes = written(instances, self.coordinates, self.sent_size(int(instances["width"]), int(instances["height"])))
        return self.said(boxes, instances, columns)

    def request(self, seen: Callable[[], str], question: str) -> Request[tuple[float, float]]:
        """One question; the answer is the logarithms of yes and no. ``seen`` makes the image that it is about, a data URL."""
        fields = {"limit": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": self.top_logprobs}
        return Request(lambda: self.body(seen(), question, **fields), first_token_logs)


def _column(rows: Sequence[Sequence[tuple[int, tuple[float, float]]] | None]) -> pa.Array:
    """A column of cells, of each row's pairs and logarithms; null where a row is None."""
    parts = [
        (
            np.array([number for number, _ in row or ()], np.int64),
            np.array([logs for _, logs in row or ()]).reshape(-1, 2),
        )
        for row in rows
    ]
    return pc.if_else(pa.array([row is not None for row in rows]), answer_cells(parts), None)
