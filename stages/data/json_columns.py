"""Columns of numbers out of annotation files in JSON: fast where all is well, exact about the entry where it is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import UserError


def read_json(file: Path, kind: type, what: str) -> Any:
    """The content of a JSON file, a list or a dict as `kind` says. Raises UserError naming the file and `what` it is."""
    try:
        record = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); it should be {what}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); it should be {what}") from error
    if not isinstance(record, kind):
        raise UserError(f"{file}: holds a {type(record).__name__}, not a {kind.__name__}; it should be {what}")
    return record


def number_rows(values: Sequence[Any], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of `width` numbers as float64 [n, width], and bool [n]: the entry was such a list, all of it finite.

    Rows that were not are zero.
    """
    try:
        rows = np.array(values, np.float64).reshape(len(values), -1)
        if len(values) and rows.shape[1] != width:
            raise ValueError("another width")
        rows = rows.reshape(-1, width)
    except (ValueError, TypeError):
        rows = np.full((len(values), width), np.nan)
        for i, value in enumerate(values):
            if isinstance(value, list) and len(value) == width and all(_is_number(part) for part in value):
                rows[i] = value
    good = np.isfinite(rows.sum(axis=1))
    return np.where(good[:, None], rows, 0.0), good


def integers(values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers as int64 [n], and bool [n]: the entry was a whole number (the others are -1)."""
    try:
        numbers = np.array(values, np.float64).reshape(len(values))
    except (ValueError, TypeError):
        numbers = np.array([value if _is_number(value) else np.nan for value in values], np.float64)
    good = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53)
    return np.where(good, numbers, -1).astype(np.int64), good


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
