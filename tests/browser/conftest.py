"""Sample pages: drawn images and made-up figures, with markup wherever a teacher or a user supplies text."""

from __future__ import annotations

from pathlib import Path

import pytest

from hoi_distill.stages.evaluate.pages import report
from hoi_distill.stages.evaluate.pages.evaluation_page import write_evaluation
from hoi_distill.stages.evaluate.pages.folder_page import write_folder_page
from tests.fixtures.sample_pages import MARKUP, evaluated, experiments_page, folder_page, run_report


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page, written once: {"report": path, "folder": path, ...}."""
    folder = tmp_path_factory.mktemp("pages")
    paths = {name: folder / f"{name}.html" for name in ("report", "folder", "experiments")}
    report.write_report(paths["report"], run_report())
    write_folder_page(paths["folder"], folder_page())
    report.write_experiments_page(paths["experiments"], experiments_page())
    write_evaluation(evaluated(), folder, MARKUP, resamples=50)
    return {**paths, "evaluation": folder / "evaluation.html"}
