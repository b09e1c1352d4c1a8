"""Columns of numbers out of annotation files in JSON: fast where all is well, exact about the entry where it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from hoi_distill.storage.errors import UserError

_NUMBERS = frozenset((int, float))
_DIGITS = re.compile("[0-9]{1,18}")


def read_json(file: Path, kind: type, what: str) -> Any:
    """The content of a JSON file.

    Args:
        file: The file.
        kind: The type that its content should have: a list or a dict.
        what: What the file should be, for errors.

    Raises:
        UserError: If the file cannot be read, or holds something else.
    """
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
    """Lists of ``width`` numbers as an array.

    Returns:
        float64 ``[n, width]``, zero where the entry is no such list; and bool ``[n]``, whether it is one, all of it finite.
    """
    try:
        if not _all_numbers(chain.from_iterable(values)):
            raise TypeError("no numbers")  # of which numpy would make some
        rows = np.array(values, np.float64).reshape(len(values), -1)
        if len(values) and rows.shape[1] != width:
            raise ValueError("another width")
        rows = rows.reshape(-1, width)
    except (ValueError, TypeError, OverflowError):
        rows = np.full((len(values), width), np.nan)
        for i, value in enumerate(values):
            if isinstance(value, list | tuple) and len(value) == width:
                rows[i] = [part if is_number(part) else np.nan for part in value]
    good = np.logical_and.reduce(np.isfinite(rows), axis=1)
    return np.where(good[:, None], rows, 0.0), good


def numbers(values: Sequence[Any]) -> np.ndarray:
    """float64 ``[n]``; NaN for what is no number."""
    try:
        if not _all_numbers(values):
            raise TypeError("no numbers")
        return np.array(values, np.float64).reshape(len(values))
    except (ValueError, TypeError, OverflowError):
        return np.array([value if is_number(value) else np.nan for value in values], np.float64)


def integers(values: Sequence[Any], *, text: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers as an array.

    Args:
        values: The entries.
        text: Whether a text of digits is a number too; PPDM's own annotations hold "77\\n".

    Returns:
        int64 ``[n]``, -1 where the entry is no whole number; and bool ``[n]``, whether it is one, such as 1 or 1.0.
    """
    if text:
        values = [
            int(value) if isinstance(value, str) and _DIGITS.fullmatch(value.strip()) else value for value in values
        ]
    given = numbers(values)
    good = np.isfinite(given) & (given == np.floor(given)) & (np.abs(given) < 2**53)
    return np.where(good, given, -1).astype(np.int64), good


def is_number(value: Any) -> bool:
    """Whether it is a number in JSON (true is none, nor is "1"), and one that float64 can hold."""
    if type(value) not in _NUMBERS:
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _all_numbers(values: Iterable[Any]) -> bool:
    return _NUMBERS.issuperset(map(type, values))
