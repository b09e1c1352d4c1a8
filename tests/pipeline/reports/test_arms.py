"""The table of a matrix has one column for each group of classes, whatever annotations its arms saw."""

from __future__ import annotations

from hoi_distill.pipeline.reports.arms import MarkdownPage, markdown
from hoi_distill.stages.evaluate.pages.report import Arm, Run

PAGE = MarkdownPage("m", "", "", (0,))


def arm(name: str, classes: int) -> Arm:
    means = {"full": 50.0, "rare": 40.0, "non_rare": 60.0}
    return Arm(name, "", [Run(0, means, means, 1.0, by_training_pairs={"pairs_0": {"classes": classes, "map": 30.0}})])


def test_the_head_says_how_many_classes_a_group_has_where_all_arms_agree():
    text = markdown(PAGE, [arm("A", 3), arm("B", 3)])
    assert "| arm | full | rare | non-rare | 0 pairs (3) | known object, full | CPU s |" in text
    assert "| B | 50.0 | 40.0 | 60.0 | 30.0 | 50.0 | 1 |" in text


def test_the_cells_say_it_where_arms_saw_other_annotations():
    text = markdown(PAGE, [arm("A", 3), arm("zero-shot", 14), arm("all seen", 0)])
    assert "| arm | full | rare | non-rare | 0 pairs | known object, full | CPU s |" in text
    assert "| A | 50.0 | 40.0 | 60.0 | 30.0; 3 classes | 50.0 | 1 |" in text
    assert "| zero-shot | 50.0 | 40.0 | 60.0 | 30.0; 14 classes | 50.0 | 1 |" in text
    assert "| all seen | 50.0 | 40.0 | 60.0 | – | 50.0 | 1 |" in text
    assert "Where arms saw other annotations" in text
