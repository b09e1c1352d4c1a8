"""Packages that only some commands need: the extras of ``pyproject.toml``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from hoi_distill.storage.errors import UserError


def refuse_missing_packages(packages: Sequence[str], extra: str) -> None:
    """Raises UserError where a package of one of the project's extras is not installed or cannot be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise UserError(f"{package}: {error}; install the extra: pip install 'hoi-distill[{extra}]'") from None
        except ImportError as error:  # a library of the system, such as OpenCV's libGL
            raise UserError(f"{package}: {error}; install that library (Debian: apt-get install libgl1)") from None
