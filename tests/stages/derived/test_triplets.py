"""What a sentence says, and what it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoi_distill.pipeline.graph.builder import build_stage
from hoi_distill.stages.data.prompts import interaction_prompt
from hoi_distill.stages.data.vocabulary import Vocabulary, hico_vocabulary
from hoi_distill.stages.derived.lexicon import findings
from hoi_distill.stages.derived.lexicon.alignment import Aligner
from hoi_distill.stages.derived.lexicon.lexicon import Lexicon
from hoi_distill.stages.derived.lexicon.reader import read
from hoi_distill.stages.derived.triplets import Triplets, drop_report, placed
from hoi_distill.stages.keys import StageContext
from hoi_distill.stages.stage import Batch, fingerprint_record
from hoi_distill.stages.teacher.blip.stages import BlipCaptions
from hoi_distill.stages.teacher.text_embeddings import TextEmbeddings
from hoi_distill.stages.teacher.weights import Checkpoint
from hoi_distill.storage.errors import UserError
from tests.fixtures.stages import made


def lexicon_of(words):
    return Lexicon(words.verbs, words.objects, [(int(verb), int(obj)) for verb, obj in words.hois])


HICO = hico_vocabulary()
HOIS = [(int(verb), int(obj)) for verb, obj in HICO.hois]
LEXICON = lexicon_of(HICO)
VOCABULARIES = Path(__file__).parents[3] / "stages" / "data" / "vocabularies"
CAPTIONS = [json.loads(line) for line in (Path(__file__).parent / "captions_to_parse.jsonl").open(encoding="utf-8")]


def named(words, triplets):
    return [f"{words.verbs[verb]} {words.objects[obj]}" for verb, obj in triplets]


TABLE = {
    "a person riding a bicycle": "ride bicycle",
    "A man RIDES his big red bike.": "ride bicycle",
    "two women rode bicycles": "ride bicycle",
    "the person is sitting on a chair": "sit_on chair",
    "a man sitting on a chair reading a book": "sit_on chair, read book",
    "a man riding a bike and a woman holding a cup": "ride bicycle, hold cup",
    "riding and holding a bicycle": "ride bicycle, hold bicycle",
    "a boy holding a cup and a book": "hold cup, hold book",
    "a boy holding a cup and a girl reading a book": "hold cup, read book",
    "a man holding a cup and a dog is running": "hold cup",
    "a woman watching a man who is riding a horse": "ride horse",
    "a person talking on a cell phone": "talk_on cell_phone",
    "a guy talking on his phone": "talk_on cell_phone",
    "a girl holding a teddy bear": "hold teddy_bear",
    "a chef cutting a hot dog with a knife": "cut hot_dog, cut_with knife",
    "a photo of a person hugging another person": "hug person",
    "the person is holding a cup; the person is drinking with a cup": "hold cup, drink_with cup",
    "a dog holding a frisbee": "",
    "a man petting a dog holding a frisbee": "pet dog",
    "a horse ridden by a man": "ride horse",
    "a person and a bicycle": "",
    "nobody is interacting": "",
    "": "",
}
DROPPED = {
    "a man riding a pizza": findings.UNKNOWN_PAIR,
    "a man holding a spaceship": findings.UNKNOWN_OBJECT,
    "a man juggling an apple": findings.UNKNOWN_VERB,
    "a man riding along": findings.NO_OBJECT,
    "a man with a horse": findings.NO_VERB,
    "a dog holding a frisbee": findings.NOT_A_PERSON,
    "a horse being ridden": findings.NO_AGENT,
    "a man is not riding the horse": findings.NEGATED,
    "no people are riding horses": findings.NEGATED,
    "a man about to ride a horse": findings.INTENDED,
    "a man may be riding a horse": findings.DOUBTFUL,
    "is a man riding a horse?": findings.QUESTION,
}


@pytest.mark.parametrize(("text", "triplets"), TABLE.items())
def test_sentences(text, triplets):
    assert ", ".join(named(HICO, read(text, LEXICON).triplets)) == triplets


@pytest.mark.parametrize(("text", "reason"), DROPPED.items())
def test_what_is_dropped_says_why(text, reason):
    reading = read(text, LEXICON)
    assert not reading.triplets
    assert [drop.reason for drop in reading.dropped] == [reason]


def test_precision_and_recall_on_sentences_with_known_triplets():
    lexicons = {"hico": (HICO, LEXICON)}
    v_coco = Vocabulary.load(VOCABULARIES / "v_coco.json")
    lexicons["v_coco"] = v_coco, lexicon_of(v_coco)
    right = found = expected = 0
    for record in CAPTIONS:
        words, lexicon = lexicons[record.get("vocabulary", "hico")]
        triplets = set(named(words, read(record["text"], lexicon).triplets))
        right += len(triplets & set(record["triplets"]))
        found += len(triplets)
        expected += len(record["triplets"])
    assert len(CAPTIONS) >= 150
    assert right / found >= 0.97
    assert right / expected >= 0.95


@pytest.mark.parametrize("name", ["pico", "hico", "v_coco", "swig_hoi"])
def test_every_vocabulary_is_read(name):
    words = Vocabulary.load(VOCABULARIES / f"{name}.json")
    lexicon = lexicon_of(words)
    verb, obj = next(pair for pair in sorted(lexicon.allowed) if words.objects[pair[1]] == "bicycle")
    text = f"a person {words.verb_ing[verb].replace('_', ' ')} a bike"
    assert (verb, obj) in read(text, lexicon).triplets


PIECES = """
a the man woman horse bike cup is are riding rides ridden by held of 's and , . ; : ? ! ( ) < > [ ] { } | -> - not no
without with it them her to has who piece orange bus stop holding 1. * "verb": 😀 é ’ on top of
"""
fragments = st.lists(st.sampled_from([*PIECES.split(), "\n"]), max_size=60).map(" ".join)


@given(st.one_of(st.text(max_size=200), fragments))
def test_any_text_is_read_and_always_alike(text):
    reading = read(text, LEXICON)
    assert set(reading.triplets) <= LEXICON.allowed
    assert read(text, LEXICON) == reading


@pytest.mark.parametrize(
    "part",
    [
        "a man riding a horse and a dog ",
        "holding a piece of ",
        "a dog 's ",
        "<person, ride, horse> ",
        "((((",
        "<<<",
        "\n\n",
    ]
    + ["holding a cup, ", "x" * 50, "red ", "holds red ", "   ", "riding and ", "has no ", "on a cup "],
)
def test_a_very_long_text_is_read(part):
    text = part * 3000
    assert set(read(text, LEXICON).triplets) <= LEXICON.allowed
    assert all(len(drop.phrase) < 2000 for drop in read(text, LEXICON).dropped if drop.reason != findings.QUESTION)


def test_every_interaction_is_read_back_from_its_own_prompt():
    for hoi, (verb, obj) in enumerate(HOIS):
        expected = [] if HICO.verbs[verb] == "no_interaction" else [(verb, obj)]
        assert list(read(HICO.prompt(hoi), LEXICON).triplets) == expected, HICO.prompt(hoi)


@pytest.fixture
def stage():
    stage = made(Triplets, vocabulary=HICO, columns=("a photo of", "list:", "is there anybody riding a bicycle?"))
    stage.open("cpu", {})
    return stage


def cells_of(stage, question, captions):
    batch = Batch(np.zeros(len(captions), "V16"), [""] * len(captions), len(captions))
    inputs = {"captions": {question: pa.array(captions, BlipCaptions.output.type)}}
    values = stage.compute(batch, [question], inputs)[question]
    assert values.type == stage.output.type
    return values.to_pylist()


def test_a_caption_column_gives_certain_triplets(stage):
    said = {"text": "a person riding a bicycle", "score": None}
    first, second, absent = cells_of(stage, "a photo of", [said, {"text": "a cup", "score": None}, None])
    assert [(HICO.verbs[first["verb"][0]], HICO.objects[first["object"][0]])] == [("ride", "bicycle")]
    assert first["weight"] == [1.0]
    assert first["phrase"] == ["riding a bicycle"]
    assert second == {"verb": [], "object": [], "weight": [], "phrase": [], "dropped": []}
    assert absent is None


def test_a_yes_no_column_weighs_the_asked_triplet_by_its_score(stage):
    (cell,) = cells_of(stage, "is there anybody riding a bicycle?", [{"text": "no", "score": 0.25}])
    assert HICO.verbs[cell["verb"][0]] == "ride"
    assert cell["weight"] == [0.25]


def test_it_reads_the_one_column_it_names_and_no_image(stage):
    assert stage.decodes is False
    assert stage.dependencies("list:") == {"captions": ("list:",)}


def test_another_vocabulary_is_another_table(stage):
    smaller = made(Triplets, vocabulary=replace(HICO, hois=HICO.hois[:-1]), columns=stage.columns)
    fewer = made(Triplets, vocabulary=HICO, columns=stage.columns[:1])
    assert fingerprint_record(smaller) != fingerprint_record(stage)
    assert fingerprint_record(fewer) == fingerprint_record(stage)


def test_drops_are_counted_by_reason(stage):
    said = [
        "a man riding a bike",
        "a man riding a pizza",
        "a dog riding a bike",
        "a man holding a cup on a pizza",
        None,
    ]
    cells = cells_of(stage, "list:", [None if text is None else {"text": text, "score": None} for text in said])
    report = drop_report(cells)
    assert report == {"taken": 2, findings.UNKNOWN_PAIR: 1, findings.NOT_A_PERSON: 1}
    assert drop_report([]) == {"taken": 0}


VECTORS = {
    interaction_prompt("gliding on", "gliding on", "skateboard"): (0.6, 0.8, 0, 0),
    "a photo of a person riding a skateboard": (0.6, 0.8, 0, 0),
    "a photo of a person gripping by a skateboard": (0.0, 0.0, 1, 0),
    "a photo of a quadbike": (1, 0, 0, 0),
    "a photo of a motorcycle": (0.9, 0, 0, np.sqrt(1 - 0.81)),
}


def embed(text):
    """What a text encoder would say: the few texts above, all else at a right angle to them."""
    return np.array(VECTORS.get(text, (0, 0, 0, -1)), np.float32)


def test_a_phrase_without_exact_match_takes_the_nearest_verb_that_its_object_allows():
    triplets, dropped = placed(read("a boy gliding on a skateboard", LEXICON), Aligner(LEXICON, embed, 0.8))
    assert named(HICO, triplets) == ["ride skateboard"]
    assert [weight for weight, _ in triplets.values()] == [pytest.approx(1.0)]
    assert dropped == []


def test_an_unknown_object_takes_its_neighbour_and_its_cosine():
    text = "a boy riding a quadbike"
    triplets, _ = placed(read(text, LEXICON), Aligner(LEXICON, embed, 0.8))
    assert named(HICO, triplets) == ["ride motorcycle"]
    assert triplets.popitem()[1][0] == pytest.approx(0.9)
    nothing, dropped = placed(read(text, LEXICON), Aligner(LEXICON, embed, 0.95))
    assert not nothing
    assert dropped == [("riding a quadbike", findings.UNKNOWN_OBJECT)]


def test_what_is_negated_is_never_aligned():
    triplets, _ = placed(read("a boy not gliding on a skateboard", LEXICON), Aligner(LEXICON, embed, 0.8))
    assert not triplets


@pytest.fixture
def encoder(checkpoints):
    return Checkpoint.find(checkpoints.itm)


def test_the_stage_weighs_by_the_text_encoders_own_cosine(encoder):
    soft = made(Triplets, vocabulary=HICO, columns=("list:",), embeddings=encoder, threshold=0.1)
    soft.open("cpu", {})
    (cell,) = cells_of(soft, "list:", [{"text": "a person near a red cup is balancing a chair", "score": None}])
    assert HICO.objects[cell["object"][0]] == "chair"
    texts = made(TextEmbeddings, checkpoint=encoder)
    texts.open("cpu", {})
    hoi = HOIS.index((cell["verb"][0], cell["object"][0]))
    pair = ["a photo of a person balancing a chair", HICO.prompt(hoi)]
    vectors = texts.compute(Batch(np.zeros(2, "V16"), pair, 2, texts=pair), ["value"], {})["value"]
    ours, theirs = (np.array(vector) for vector in vectors.to_pylist())
    assert cell["weight"] == [pytest.approx(float(ours @ theirs), abs=1e-5)]


def test_the_text_encoder_and_the_threshold_are_part_of_the_fingerprint(encoder):
    def record(**options):
        return fingerprint_record(made(Triplets, vocabulary=HICO, columns=("list:",), **options))

    assert record() != record(embeddings=encoder)
    assert record(embeddings=encoder) != record(embeddings=encoder, threshold=0.9)
    assert record() == record(threshold=0.9)
    with pytest.raises(UserError, match="threshold"):
        record(threshold=80)


def test_the_configuration_names_the_text_encoder(checkpoints):
    context = StageContext(HICO, {"train": None}, lambda paths: np.zeros(len(paths), "V16"))
    table = {"columns": ["list:"], "embeddings": str(checkpoints.itm)}
    assert build_stage("triplets", table, context, "test").embeddings.folder == str(checkpoints.itm)
    with pytest.raises(UserError, match="embeddings"):
        build_stage("triplets", {**table, "embeddings": "/nowhere"}, context, "test")
