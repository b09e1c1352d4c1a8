"""Which interactions a teacher's words and answers make labels, and how sure."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from hoi_distill.stages.data.label_kinds import IGNORED, NEGATIVE, POSITIVE
from hoi_distill.stages.data.vocabulary import Vocabulary
from hoi_distill.stages.derived.image_labels import NOT_SEEN, ImageLabels
from hoi_distill.stages.derived.triplets import Triplets
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.blip.stages import BlipCaptions
from hoi_distill.stages.teacher.detectors.given import DETECTIONS
from hoi_distill.stages.teacher.seen_objects import presence
from hoi_distill.stages.teacher.sentence_embeddings import SentenceEmbeddings, read_along, split
from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made

OBJECTS = ("person", "bicycle", "cup")
VERBS = ("hold", "hug", "no_interaction", "ride")
RIDE, HOLD, NOTHING, CUP, HUG = range(5)
HOIS = ((3, 1), (0, 1), (2, 1), (0, 2), (1, 0))
QUESTIONS = {
    "is there anybody riding a bicycle?": RIDE,
    "is there anybody holding a bicycle?": HOLD,
    "is there anybody holding a cup?": CUP,
    "is there anybody hugging another person?": HUG,
}
WORDS = Vocabulary(OBJECTS, VERBS, np.array(HOIS, np.int16), ("holding", "hugging", "no_interaction", "riding"))
TEXTS = ("a photo of", "list the interactions:")


def stage(**options):
    return made(ImageLabels, vocabulary=WORDS, texts=TEXTS, **options)


def detections(*images):
    """Each image a list of (label, score)."""
    cells = [
        None
        if found is None
        else {
            "boxes": [[0, 0, 1, 1]] * len(found),
            "labels": [label for label, _ in found],
            "scores": [score for _, score in found],
            "width": 9,
            "height": 9,
        }
        for found in images
    ]
    return pa.array(cells, DETECTIONS)


def triplets(*images):
    """Each image a list of (interaction, weight)."""
    cells = [
        {
            "verb": [HOIS[hoi][0] for hoi, _ in found],
            "object": [HOIS[hoi][1] for hoi, _ in found],
            "weight": [weight for _, weight in found],
            "phrase": [f"phrase {hoi}" for hoi, _ in found],
            "dropped": [],
        }
        for found in images
    ]
    return pa.array(cells, Triplets.output.type)


def answers(p_yes, count=1):
    cells = None if p_yes is None else {"text": "yes", "score": p_yes}
    return pa.array([cells] * count, BlipCaptions.output.type)


SEEN = [(0, 1.0), (1, 1.0)]


def labelled(said=(), p_yes=None, seen=SEEN, **options):
    """``{interaction: (target, kind, weight)}`` of one image; ``p_yes`` by interaction, where questions are asked."""
    made = stage(verification=None if p_yes is None else "verification", **options)
    inputs = {
        "triplets": {TEXTS[0]: triplets(said), TEXTS[1]: triplets(())},
        "detections": {"value": detections(seen)},
        "verification": {text: answers((p_yes or {}).get(hoi)) for text, hoi in QUESTIONS.items()},
    }
    values = made.compute(Batch(np.zeros(1, "V16"), ["x"], 1), ("value",), inputs)["value"]
    assert values.type == made.output.type
    (cell,) = values.to_pylist()
    entries = zip(cell["target"], cell["kind"], cell["weight"], strict=True)
    return dict(zip(cell["hoi"], [tuple(round(x, 4) for x in entry) for entry in entries], strict=True))


@pytest.mark.parametrize(
    ("extracted", "p_yes", "expected"),
    [
        (1.0, 1.0, (1.0, POSITIVE, 1)),
        (1.0, 0.0, (0.5, POSITIVE, 1)),
        (0.8, 0.9, (0.85, POSITIVE, 1)),
        (0.8, 0.1, (0.45, IGNORED, 0)),
        (0.0, 0.9, (0.45, IGNORED, 0)),
        (0.0, 0.3, (0.15, IGNORED, 0)),
        (0.0, 0.1, (0.05, NEGATIVE, 1)),
        (1.0, None, (1.0, POSITIVE, 1)),
        (0.8, None, (0.8, POSITIVE, 1)),
        (0.0, None, (0.0, NEGATIVE, 0.2)),
    ],
)
def test_target_kind_and_weight_by_what_was_read_and_answered(extracted, p_yes, expected):
    said = [(RIDE, extracted)] if extracted else []
    found = labelled(said, {RIDE: p_yes, HOLD: 0.0})
    assert found[RIDE] == expected
    if p_yes is None:  # not asked is as good as no table of answers
        assert labelled(said)[RIDE] == expected


def test_no_interaction_is_what_remains():
    assert labelled(p_yes={RIDE: 0.5, HOLD: 0.2})[NOTHING] == (0.4, IGNORED, 0)
    assert labelled(p_yes={RIDE: 0.1, HOLD: 0.1})[NOTHING] == (0.81, POSITIVE, 1)
    assert labelled(p_yes={RIDE: 0.95, HOLD: 0.1})[NOTHING] == (0.045, NEGATIVE, 1)
    assert labelled([(RIDE, 1.0)])[NOTHING] == (0.0, NEGATIVE, 1)
    assert labelled()[NOTHING] == (1.0, POSITIVE, 0.2), "silence alone weighs little"
    assert labelled(p_yes={RIDE: 0.0})[NOTHING] == (1.0, POSITIVE, 0.2), "one verb of two was not asked about"


@pytest.mark.parametrize(
    ("person", "bicycle", "expected"),
    [(0.9, 0.7, (0.7, POSITIVE, 1)), (0.6, 0.9, (0.6, POSITIVE, 1)), (0.9, 0.3, (0.3, IGNORED, 0))],
)
def test_no_interaction_is_no_surer_than_the_boxes(person, bicycle, expected):
    seen = [(0, person), (1, bicycle)]
    denied = {RIDE: 0.0, HOLD: 0.0}
    assert labelled(p_yes=denied, seen=seen)[NOTHING] == expected
    assert labelled(p_yes=denied, seen=seen)[RIDE] == (0.0, NEGATIVE, 1)
    silent = labelled(seen=seen)[NOTHING]
    assert silent == (*expected[:2], 0.2 if expected[1] == POSITIVE else 0.0), "silence does not deny it either"


@pytest.mark.parametrize(
    ("seen", "listed"),
    [
        (SEEN, {RIDE, HOLD, NOTHING}),
        ([(0, 0.9)], set()),
        ([(0, 0.9), (0, 0.1)], {HUG}),
        ([(0, 0.9), (0, 0.09)], set()),
        ([(1, 0.9), (2, 0.9)], set()),
        ([(0, 0.1), (2, 0.1)], {CUP}),
        ([], set()),
        ([(0, 0.9), (79, 0.9)], set()),
    ],
)
def test_only_what_was_detected_with_a_person_is_judged(seen, listed):
    assert set(labelled([(RIDE, 1.0), (HUG, 1.0)], seen=seen)) == listed


def test_presence_is_the_worse_box_of_person_and_object():
    images = [
        [(0, 0.25), (1, 0.75), (0, 0.5), (1, 0.125), (79, 1.0)],
        None,  # a recorded failure
        [(2, 0.5), (0, 0.125), (0, 0.75), (0, 0.5)],
        [(0, 1.0)],
        [(1, 1.0)],
        [],
    ]
    expected = [[0.25, 0.5, 0], [0, 0, 0], [0.5, 0, 0.5], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert presence(detections(*images), 3).tolist() == expected


def test_the_largest_weight_of_any_text_counts():
    made = stage()
    inputs = {
        "triplets": {TEXTS[0]: triplets([(RIDE, 0.8)], []), TEXTS[1]: triplets([(RIDE, 0.9)], [(HOLD, 1.0)])},
        "detections": {"value": detections(SEEN, SEEN)},
    }
    target = made.judged(inputs).target
    np.testing.assert_allclose(target[:, [RIDE, HOLD]], [[0.9, 0], [0, 1.0]])


def test_what_was_not_detected_is_dropped_and_named():
    inputs = {
        "triplets": {TEXTS[0]: triplets([(RIDE, 1.0), (CUP, 1.0)], []), TEXTS[1]: triplets([(CUP, 1.0)], [(HUG, 1.0)])},
        "detections": {"value": detections(SEEN, SEEN)},
    }
    cells = stage().compute(Batch(np.zeros(2, "V16"), ["x", "y"], 2), ("value",), inputs)["value"].to_pylist()
    assert [cell["dropped"] for cell in cells] == [
        [{"phrase": f"phrase {CUP}", "reason": NOT_SEEN}],
        [{"phrase": f"phrase {HUG}", "reason": NOT_SEEN}],
    ]


def test_the_same_text_gives_the_same_labels_always():
    """Through the parser, opened anew, with other neighbours in the batch."""
    said = [
        "a man riding a bicycle and a woman holding a cup",
        "a boy with a bike",
        "nobody",
        "holding a bike; a cup",
    ] * 3

    def label(order):
        reader = made(Triplets, vocabulary=WORDS, columns=(TEXTS[0],))
        reader.open("cpu", {})
        captions = pa.array([{"text": said[i], "score": None} for i in order], BlipCaptions.output.type)
        batch = Batch(np.zeros(len(order), "V16"), [""] * len(order), len(order))
        read = reader.compute(batch, (TEXTS[0],), {"captions": {TEXTS[0]: captions}})
        labels = made(ImageLabels, vocabulary=WORDS, texts=(TEXTS[0],))
        found = {"triplets": read, "detections": {"value": detections(*[SEEN] * len(order))}}
        return labels.compute(batch, ("value",), found)["value"].to_pylist()

    straight, backwards = label(range(12)), label(range(11, -1, -1))
    assert straight == backwards[::-1] == label(range(12))
    assert straight[0]["kind"][0] == POSITIVE


def test_what_it_reads_and_what_names_its_table():
    labels = stage(verification="verification")
    asked = {"triplets": TEXTS, "detections": ("value",), "verification": tuple(QUESTIONS)}
    assert labels.dependencies("value") == asked
    assert labels.inputs == tuple(asked)
    assert labels.decodes is False
    assert "verification" not in stage().dependencies("value")
    others = [stage(least=0.2), stage(positive=0.6), stage(negative=0.2), stage(silence=0.1)]
    assert len({str(fingerprint_record(each)) for each in (*others, stage())}) == 5
    assert fingerprint_record(stage(batch_size=2, triplets="x")) == fingerprint_record(stage())
    with pytest.raises(UserError, match="negative < positive"):
        stage(positive=0.1, negative=0.1)
    with pytest.raises(UserError, match="texts"):
        made(ImageLabels, texts=())


def test_a_vocabulary_of_thousands_is_judged_quickly():
    """No loop over images or interactions beside no_interaction's."""
    hois = [(verb, obj) for obj in range(80) for verb in range(20)]
    verbs = ("no_interaction", *(f"verb {i}" for i in range(19)))
    words = Vocabulary(tuple(f"object {i}" for i in range(80)), verbs, np.array(hois, np.int16), verbs)
    labels = made(ImageLabels, vocabulary=words, texts=TEXTS)
    batch = Batch(np.zeros(256, "V16"), [""] * 256, 256)
    nothing = pa.array(
        [{"verb": [1], "object": [1], "weight": [1.0], "phrase": ["x"], "dropped": []}] * 256, Triplets.output.type
    )
    inputs = {"triplets": dict.fromkeys(TEXTS, nothing), "detections": {"value": detections(*[SEEN] * 256)}}
    cells = labels.compute(batch, ("value",), inputs)["value"]
    assert [len(cell) for cell in cells.field("hoi").to_pylist()] == [20] * 256


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (
            "A man rides a bike. He wears a helmet!  It is 3.5 m long.",
            ["A man rides a bike.", "He wears a helmet!", "It is 3.5 m long."],
        ),
        ("1. riding a bike\n2) holding a cup\n- sitting", ["riding a bike", "holding a cup", "sitting"]),
        ("the person is riding; the person is holding", ["the person is riding", "the person is holding"]),
        (" ...\n\n ; ", []),
        ("", []),
    ],
)
def test_a_text_is_split_into_sentences(text, sentences):
    assert split(text) == sentences


def test_a_question_is_read_along_where_the_answer_continues_it():
    assert read_along("a photo of", "a cup") == "a photo of a cup"
    assert read_along("list:", "a cup") == "a cup"


def test_each_sentence_has_the_vector_that_its_encoder_gives_it(checkpoints):
    encoder = Checkpoint.find(checkpoints.itm)
    labels = made(SentenceEmbeddings, checkpoint=encoder, question="what:", sentences=2)
    labels.open("cpu", {})
    said = ["a person riding a bicycle. a dog. a cup.", "", "a dog.", "a dog " * 60]
    cells = pa.array([{"text": text, "score": None} for text in said] + [None], BlipCaptions.output.type)
    batch = Batch(np.zeros(5, "V16"), [""] * 5, 5)
    found = labels.compute(batch, ("value",), {"captions": {"what:": cells}})["value"]
    assert found.type == labels.output.type
    rows = found.to_pylist()
    assert [len(row) for row in rows] == [2, 0, 1, 1, 0], "a text that is too long is cut, no failure"
    texts = made(TextEmbeddings, checkpoint=encoder)
    texts.open("cpu", {})
    alone = np.concatenate([texts.embed([text]) for text in ("a person riding a bicycle.", "a dog.")])
    np.testing.assert_allclose(rows[0], alone, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(np.array(rows[0]), axis=1), 1, atol=2e-3)
    assert rows[2][0] == rows[0][1]
    assert labels.dependencies("value") == {"captions": ("what:",)}
    assert fingerprint_record(labels) != fingerprint_record(
        made(SentenceEmbeddings, checkpoint=encoder, question="what:", sentences=3)
    )
    assert fingerprint_record(labels) == fingerprint_record(
        made(SentenceEmbeddings, checkpoint=encoder, question="other:", sentences=2)
    )
