"""Queries of the viewer against what the annotations, the cache and the detections say."""

from __future__ import annotations

import numpy as np
import pytest

from hoi_distill.pipeline.viewer.library import Library
from hoi_distill.pipeline.viewer.query import ERROR_KINDS, Query
from hoi_distill.storage.errors import UserError

A, B = "viewed/000000000000", "viewed/000000000001"


def found(library: Library, **parts: str) -> list[int]:
    return library.find(Query.parse(parts)).entries.tolist()


def test_an_empty_query_finds_every_image_in_the_datasets_order(library):
    assert found(library) == list(range(60))
    assert found(library, down="1") == list(range(60))[::-1]


def test_a_split_keeps_its_images(library):
    assert found(library, split="train") == list(range(48))
    assert found(library, split="test") == list(range(48, 60))


@pytest.mark.parametrize("part", ["verb", "object", "interaction"])
def test_a_class_keeps_the_images_that_are_annotated_with_it(library, part):
    words, test = library.workspace.vocabulary, library.workspace.dataset["test"]
    verb, thing = words.hoi_name(int(test.hoi[0]))
    name = {"verb": verb, "object": thing, "interaction": f"{verb} {thing}"}[part]
    keep = {
        "verb": test.verb == test.verb[0],
        "object": test.object == test.object[0],
        "interaction": test.hoi == test.hoi[0],
    }
    images = np.unique(test.pair_image()[keep[part]]) + 48
    assert found(library, split="test", **{part: name}) == images.tolist()


def test_a_text_is_found_in_names_and_captions_in_any_case(library):
    assert found(library, text="000017.PNG") == [17]
    verb, thing = library.workspace.vocabulary.hoi_name(int(library.workspace.dataset["train"].hoi[0]))
    said = f"A PERSON {verb} a {thing}".replace("_", " ")
    captions = library.tables["captions"].column("list the interactions:").to_pylist()
    assert (
        found(library, text=said)
        == [i for i, cell in enumerate(captions) if said.lower() in cell["text"].lower()]
        != []
    )


def test_failed_cells_are_found(library):
    assert found(library, cells="captions failed") == [0, 20, 40]
    assert found(library, cells="itm failed") == []


def test_every_kind_of_error_is_what_the_diagnosis_says(library):
    errors = library.errors(A)
    for number, kind in enumerate(ERROR_KINDS[1 : ERROR_KINDS.index("missed")]):
        images = np.unique(errors.entry[errors.decisive & (errors.kind == number)])
        assert found(library, run=A, kind=kind) == images.tolist()
    assert found(library, run=A, kind="missed") == np.unique(errors.pair_entry[errors.miss >= 0]).tolist() != []


def test_an_error_of_a_class_is_one_whose_detection_is_of_that_class(library):
    errors = library.errors(A)
    wrong = errors.decisive & (errors.kind == ERROR_KINDS.index("wrong verb and object") - 1)
    hoi = int(errors.detections.hoi[wrong][0])
    name = next(name for name, number in library.classes.items() if number == hoi)
    images = np.unique(errors.entry[wrong & (errors.detections.hoi == hoi)])
    assert found(library, run=A, kind="wrong verb and object", interaction=name) == images.tolist()


def test_a_confusion_leads_to_the_images_of_its_count(library):
    from hoi_distill.pipeline.viewer.runs import confusion_counts

    names = {number: name for name, number in library.classes.items()}
    for annotated, said, count in confusion_counts(library.errors(A)):
        images = found(library, run=A, on=names[annotated], interaction=names[said])
        assert 1 <= len(images) <= count


def test_students_that_differ_come_first_and_equal_ones_not_at_all(library):
    answer = library.find(Query.parse({"run": A, "against": B, "sort": "students", "down": "1"}))
    one, other = library.errors(A), library.errors(B)
    differ = np.bincount(one.pair_entry[(one.miss < 0) != (other.miss < 0)], minlength=60)
    assert sorted(answer.entries.tolist()) == np.flatnonzero(differ).tolist() != []
    assert answer.value.tolist() == sorted(differ[differ > 0].tolist(), reverse=True)


def test_contradiction_is_the_lowest_score_of_an_annotated_class(library):
    answer = library.find(Query.parse({"sort": "contradiction", "split": "train"}))
    scores, train = library.scores(), library.workspace.dataset["train"]
    prompts = library.workspace.vocabulary.prompts()
    for entry, value in zip(answer.entries.tolist(), answer.value.tolist(), strict=True):
        own = [float(scores.column(prompts[hoi])[entry]) for hoi in train.hoi[train.pairs(entry)].tolist()]
        assert value == pytest.approx(min(own))
    assert answer.value.tolist() == sorted(answer.value.tolist())


def test_a_score_is_the_softmax_of_the_cells_logits(library):
    name = next(iter(library.classes))
    prompt = library.workspace.vocabulary.prompt(library.classes[name])
    answer = library.find(Query.parse({"sort": "score", "interaction": name, "down": "1"}))
    assert len(answer.entries) == 60  # also those that are not annotated with it
    for entry, value in zip(answer.entries.tolist()[:5], answer.value.tolist(), strict=False):
        cell = {each.column: each for each in library.tables["itm"].answers(entry)}[prompt]
        no, yes = cell.value
        assert value == pytest.approx(1 / (1 + np.exp(no - yes)), abs=1e-3)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"verb": "rid"}, "verb: there is no 'rid' (did you mean ride?)"),
        ({"interaction": "ride moon"}, "interaction: there is no 'ride moon'"),
        ({"kind": "missed"}, "run: choose a run"),
        ({"run": A, "kind": "wong verb"}, "kind: 'wong verb' is none (did you mean wrong verb?)"),
        ({"run": "x/y"}, "run: there is no 'x/y'"),
        ({"sort": "size"}, "sort: 'size' is none"),
        ({"sort": "score"}, "interaction: choose the one"),
        ({"sort": "tables"}, "other: choose the other table"),
        ({"cells": "itm broken"}, "cells: there is no 'broken'"),
        ({"cells": "items failed"}, "cells: there is no 'items' (did you mean itm?)"),
        ({"page": "-1"}, "page: '-1' is no number from 1 on"),
        ({"splitt": "test"}, "splitt: no such part of an address (did you mean split?)"),
    ],
)
def test_a_wrong_query_is_told_in_one_line(library, parts, said):
    with pytest.raises(UserError) as told:
        assert library.errors(Query.parse(parts).run) if list(parts) == ["run"] else library.find(Query.parse(parts))
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_a_run_of_another_dataset_is_not_listed(library, viewed):
    from hoi_distill.pipeline.viewer.runs import find_runs

    assert list(library.runs) == [B, A] or list(library.runs) == [A, B]
    assert find_runs(viewed.parent / "runs", {"kind": "pico"}) == {}
