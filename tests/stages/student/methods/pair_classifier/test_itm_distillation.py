"""From the teacher's own answer, through the stage and an Arrow file, to what the VLM-HOI student's loss sees."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import BlipForImageTextRetrieval

from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.student.calibration import Platt
from hoi_distill.stages.student.methods.vlm_hoi.itm_columns import ItmColumns, columns_for
from hoi_distill.stages.student.methods.vlm_hoi.itm_loss import MatchedQueries, itm_terms
from hoi_distill.stages.student.methods.vlm_hoi.itm_targets import ItmTargets, match_row, sentence_mean
from hoi_distill.stages.student.methods.vlm_hoi.loss_config import ItmConfig
from hoi_distill.stages.teacher.blip.stages import BlipItm
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made

VOCABULARY = Vocabulary.from_actions(
    [
        ("chair", "hold", "holding"),
        ("chair", "sit_on", "sitting_on"),
        ("chair", "no_interaction", "no_interaction"),
        ("cup", "hold", "holding"),
        ("dog", "ride", "riding"),
    ],
    "the tests",
)
SOME = Platt(1.0, 0.0, 0, 0)


def cached(checkpoint, batch, columns: ItmColumns) -> list[dict[str, np.ndarray]]:
    """Each picture's cells, as the stage computes them and a shard keeps them."""
    stage = made(BlipItm, checkpoint=Checkpoint.find(checkpoint), columns=columns.prompts, token_mode="cls")
    stage.open("cpu", {})
    answers = stage.compute(batch, columns.prompts, {})
    table = pa.table({prompt: answers[prompt] for prompt in columns.prompts})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    rows = pa.ipc.open_file(sink.getvalue()).read_all().to_pylist()
    return [{prompt: np.array(pair, np.float16) for prompt, pair in row.items()} for row in rows]


def test_cached_scores_are_the_live_ones_within_fp16(checkpoints, processor, make_batch):
    columns, batch = columns_for(VOCABULARY), make_batch(3, 3)
    rows = cached(checkpoints.itm, batch, columns)
    values = np.stack([match_row(row, columns.prompts, f"{n}") for n, row in enumerate(rows)])
    targets = ItmTargets(columns, values, SOME, sentence_mean(values, np.arange(3)), ["a", "b", "c"])
    scores = targets(np.array([2, 0, 1]))

    model = BlipForImageTextRetrieval.from_pretrained(checkpoints.itm).eval()
    live = torch.full((3, len(columns.hois)), torch.nan)
    for hoi in range(len(VOCABULARY)):
        if columns.column[hoi] >= 0:
            text = [VOCABULARY.prompt(hoi)] * 3
            inputs = processor(images=list(batch.images), text=text, return_tensors="pt")
            with torch.no_grad():
                z0, z1 = model(**inputs).itm_score.T
            live[:, hoi] = z1 - z0
    assert live[:, [0, 1, 3, 4]].std() > 1e-3, "the sentences must be told apart for equality to mean anything"
    largest = max(float(np.abs(list(row.values())).max()) for row in rows)
    step = float(np.spacing(np.float16(largest)))  # each logit is rounded by at most half of it
    torch.testing.assert_close(scores.log_odds, live[[2, 0, 1]], atol=step + 1e-4, rtol=0, equal_nan=True)
    torch.testing.assert_close(scores.soft, live[[2, 0, 1]].sigmoid(), atol=step + 1e-4, rtol=0, equal_nan=True)

    verbs = torch.eye(len(VOCABULARY.verbs))[[VOCABULARY.verbs.index("hold")] * 3]
    chair = torch.full((3,), VOCABULARY.objects.index("chair"))
    logits = torch.zeros(3, len(VOCABULARY.verbs), requires_grad=True)
    hoi_id = torch.from_numpy(columns.hoi_id)
    itm_terms(ItmConfig(), scores, hoi_id, MatchedQueries(torch.arange(3), logits, verbs, chair)).sum().backward()
    assert logits.grad[:, VOCABULARY.verbs.index("hold")].abs().min() > 0


def test_a_picture_or_a_sentence_that_was_never_asked_is_an_error(checkpoints, make_batch):
    columns = columns_for(VOCABULARY)
    rows = cached(checkpoints.itm, make_batch(2, 2), columns)
    del rows[1][columns.prompts[2]]
    with pytest.raises(UserError, match=f"itm: b has no score for '{columns.prompts[2]}'"):
        match_row(rows[1], columns.prompts, "b")
    values = np.full((2, len(columns.prompts)), np.nan, np.float32)
    values[0] = match_row(rows[0], columns.prompts, "a")
    targets = ItmTargets(columns, values, SOME, sentence_mean(values, np.array([0])), ["a", "b"])
    assert torch.isfinite(targets(np.array([0])).log_odds).sum() == len(columns.prompts)
    with pytest.raises(UserError, match="itm: b has no score"):
        targets(np.array([0, 1]))
