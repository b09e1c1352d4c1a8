"""``hoi-distill`` with the toy stages: ``python -m tests.pipeline.drive run CONFIG``."""

from __future__ import annotations

from hoi_distill.pipeline.cli import main
from tests.pipeline.toys import register

if __name__ == "__main__":
    register()
    main()
