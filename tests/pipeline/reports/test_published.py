"""Published figures stand beside ours, in the same metric, with their source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hoi_distill.pipeline.experiments import PublishedFigures, load_matrix
from hoi_distill.pipeline.records import protocol_of
from hoi_distill.pipeline.reports.arms import MarkdownPage, markdown
from hoi_distill.stages.evaluate.pages.published import FIGURES, Published
from hoi_distill.stages.evaluate.pages.report import Arm, ExperimentsPage, Run, write_experiments_page
from hoi_distill.storage.errors import UserError

MEANS = {"full": 50.0, "rare": 40.0, "non_rare": 60.0}
PAGE = MarkdownPage("m", "", "", (0, 1))


def arm(name: str, published: Published | None = None, **own: object) -> Arm:
    return Arm(name, name, [Run(seed, MEANS, MEANS, 1.0, **own) for seed in (0, 1)], None, published)


def test_both_tables_show_the_papers_figure_beside_ours_with_its_source(tmp_path):
    arms = [arm("A1", Published("A paper, table 9", {"full": 36.1, "rare": 33.67})), arm("ours alone")]
    text = markdown(PAGE, arms)
    assert "| arm | full, here | full, published | rare, here | rare, published | source |" in text
    ours = "50.0 ± 0.0 (50.0–50.0)"
    assert f"| A1 | {ours} | 36.1 | 40.0 ± 0.0 (40.0–40.0) | 33.67 | A paper, table 9 |" in text
    assert text.count("A paper, table 9") == 1
    write_experiments_page(tmp_path / "page.html", ExperimentsPage("m", "", arms))
    html = (tmp_path / "page.html").read_text()
    assert html.index("full, here") < html.index("full, published") < html.index("33.67") < html.index("table 9")


def test_an_unknown_figure_is_a_dash_and_a_matrix_without_any_has_no_such_table(tmp_path):
    arms = [arm("A1", Published("s", {"full": 36.1})), arm("A2", Published("t", {"rare": 1.5}))]
    assert "| 36.1 | 40.0 ± 0.0 (40.0–40.0) | – | s |" in markdown(PAGE, arms)
    assert "published" not in markdown(PAGE, [arm("A1")])
    write_experiments_page(tmp_path / "page.html", ExperimentsPage("m", "", [arm("A1")]))
    assert "Beside the papers" not in (tmp_path / "page.html").read_text()


def test_role_ap_stands_beside_both_of_ours_because_papers_do_not_say_how_many_roles():
    roles = {
        "scenario_1": {"roles_24": 61.0, "roles_25": 59.0},
        "scenario_2": {"roles_24": 66.0, "roles_25": 64.0},
    }
    text = markdown(PAGE, [arm("A7", Published("s", {"scenario_2": 70.9}), protocol=roles)])
    assert "| role AP, scenario 2, 24 roles, here | role AP, scenario 2, 25 roles, here |" in text
    assert "| 66.0 ± 0.0 (66.0–66.0) | 64.0 ± 0.0 (64.0–64.0) | 70.9 | s |" in text


def test_a_record_keeps_the_means_of_the_datasets_own_protocol(tmp_path):
    assert protocol_of(tmp_path) == {}
    swig = {"full": 1.0, "rare": 2.0, "non_rare": 3.0, "unseen": 4.0, "per_class": []}
    (tmp_path / "official.json").write_text(json.dumps(swig))
    run = Run(0, MEANS, protocol=protocol_of(tmp_path)["protocol"])
    assert run.settings["default"] == {"full": 1.0, "rare": 2.0, "non_rare": 3.0}
    assert run.settings["zero_shot"] == {"unseen": 4.0}
    roles = {"scenario_1": {"roles_24": 5.0}, "scenario_2": {"roles_24": 6.0}}
    (tmp_path / "official.json").write_text(json.dumps({**roles, "agent": 7.0}))
    assert protocol_of(tmp_path) == {"protocol": roles}


def test_every_figure_can_be_written_in_a_matrix():
    assert set(PublishedFigures.model_fields) == {"source", *FIGURES}


@pytest.mark.parametrize(
    ("published", "said"),
    [
        ({"source": "s", "ful": 1}, r"arms\.a\.published\.ful: unknown key; did you mean full\?"),
        ({"full": 1}, r"arms\.a\.published\.source: missing"),
        ({"source": "s", "full": 361}, r"arms\.a\.published\.full: expected at most 100"),
    ],
)
def test_a_wrong_figure_is_named(tmp_path: Path, published, said):
    path = tmp_path / "m.yaml"
    arms = {"a": {"text": "x", "published": published}}
    path.write_text(yaml.safe_dump({"name": "m", "setup": "configs/pico.yaml", "arms": arms}))
    with pytest.raises(UserError, match=said):
        load_matrix(path)
