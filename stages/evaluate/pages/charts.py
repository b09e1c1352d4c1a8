"""Small inline SVG charts for the pages: lines, scatter, dots with a mean. Colours and type come from page.css."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10
from typing import Any

import numpy as np
from markupsafe import Markup, escape

_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 30


@dataclass(frozen=True)
class Point:
    """One mark of a scatter chart; ``label`` is shown on hover, ``rare`` marks are drawn as diamonds, ``href`` is where a
    click leads."""

    x: float
    y: float
    label: str
    rare: bool = False
    href: str = ""


@dataclass(frozen=True)
class DotRow:
    """One row of a dot chart: a name and the values of its repeats (seeds)."""

    label: str
    values: tuple[float, ...]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) inside [low, high], about ``about`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    return [round(k * step, 12) for k in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def line_chart(steps: Sequence[float], values: Sequence[float], title: str) -> Markup:
    """A curve over training steps: the raw values faint, their running mean in front. Infinities are left out."""
    pairs = np.array([(s, v) for s, v in zip(steps, values, strict=True) if isfinite(v)]).reshape(-1, 2)
    if not len(pairs):
        return Markup("")
    width, height = 360, 190
    if len(pairs) > 400:  # an image has no room for more
        pairs = np.stack([part.mean(0) for part in np.array_split(pairs, 400)])
    x, y = pairs[:, 0], pairs[:, 1]
    window = max(1, len(y) // 20)
    smooth = np.convolve(y, np.ones(window), "same") / np.convolve(np.ones(len(y)), np.ones(window), "same")
    low, high = min(0.0, float(y.min())), float(np.quantile(y, 0.995)) * 1.05
    if not high > low:
        high = low + 1.0
    to_x = _scale(float(x.min()), float(max(x.max(), x.min() + 1)), _LEFT, width - _RIGHT)
    to_y = _scale(low, high, height - _BOTTOM, _TOP)
    body = [_grid(ticks(low, high), to_y, width), _x_ticks(ticks(float(x.min()), float(x.max())), to_x, height, _short)]
    if window > 1:
        body.append(_polyline(x, y.clip(low, high), to_x, to_y, "raw"))
    body.append(_polyline(x, smooth.clip(low, high), to_x, to_y, "curve"))
    body.append(f'<text class="axis" x="{width - _RIGHT}" y="{height + 5}" text-anchor="end">training step</text>')
    return _svg(width, height + 10, f"{title}, last {y[-1]:.4g}", body)


def scatter_chart(points: Sequence[Point], x_name: str, y_name: str, rare_below: float) -> Markup:
    """Percentages (y) against counts (x, logarithmic from 0); rare classes differ in shape and lie in a shaded band,
    up to ``rare_below``; 0: no band."""
    width, height = 720, 320
    most = max([point.x for point in points], default=1)
    to_x = _scale(0.0, log10(1 + most) * 1.02 or 1.0, _LEFT, width - _RIGHT)
    to_y = _scale(0.0, 100.0, height - _BOTTOM - 14, _TOP)
    counts = [count for count in (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000) if count <= max(most, 1)]
    body = []
    if rare_below > 0:
        edge = min(to_x(log10(rare_below + 0.5)), width - _RIGHT)
        body = [
            f'<rect class="band" x="{_LEFT}" y="{_TOP}" width="{edge - _LEFT:.1f}" height="{to_y(0) - _TOP:.1f}"/>',
            f'<text class="rare-name" x="{_LEFT + 8}" y="{_TOP + 16}">rare</text>',
        ]
    body += [
        _grid([0, 25, 50, 75, 100], to_y, width),
        *(
            f'<text class="tick" x="{to_x(log10(1 + count)):.1f}" y="{height - 24}" text-anchor="middle">'
            f"{count:,}</text>"
            for count in counts
        ),
        f'<text class="axis" x="{(_LEFT + width - _RIGHT) / 2}" y="{height - 5}" text-anchor="middle">'
        f"{escape(x_name)}</text>",
        _y_name(y_name, (_TOP + to_y(0)) / 2),
    ]
    for point in points:
        x, y, tip = to_x(log10(1 + point.x)), to_y(point.y), f"<title>{escape(point.label)}</title>"
        mark = (
            f'<path class="mark rare" d="M{x:.1f} {y - 5:.1f}l5 5-5 5-5-5z">{tip}</path>'
            if point.rare
            else f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4">{tip}</circle>'
        )
        body.append(f'<a href="{escape(point.href)}">{mark}</a>' if point.href else mark)
    return _svg(width, height, f"{y_name} against {x_name}", body)


def dot_chart(rows: Sequence[DotRow], title: str) -> Markup:
    """One line a row: a dot for every value, a tall mark at their mean; the axis spans the values."""
    values = [value for row in rows for value in row.values]
    if not values:
        return Markup("")
    width, row_height = 360, 40
    height = _TOP + row_height * len(rows) + _BOTTOM
    margin = max(0.08 * (max(values) - min(values)), 0.5)
    low, high = max(0.0, min(values) - margin), min(100.0, max(values) + margin)
    to_x = _scale(low, high, 12, width - 14)
    body = [
        f'<line class="grid" x1="{to_x(tick):.1f}" x2="{to_x(tick):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>'
        for tick in ticks(low, high)
    ]
    body.append(_x_ticks(ticks(low, high), to_x, height, lambda tick: f"{tick:g}"))
    for i, row in enumerate(rows):
        y = _TOP + row_height * (i + 0.5) + 8
        if not row.values:
            continue
        mean = sum(row.values) / len(row.values)
        body.append(f'<text class="row" x="12" y="{y - 13:.1f}">{escape(row.label)}</text>')
        body.append(
            f'<line class="span" x1="{to_x(min(row.values)):.1f}" x2="{to_x(max(row.values)):.1f}" y1="{y}" y2="{y}"/>'
        )
        for value in row.values:
            tip = f"{row.label}: {value:.2f}"
            body.append(
                f'<circle class="mark" cx="{to_x(value):.1f}" cy="{y}" r="4"><title>{escape(tip)}</title></circle>'
            )
        body.append(f'<line class="mean" x1="{to_x(mean):.1f}" x2="{to_x(mean):.1f}" y1="{y - 7}" y2="{y + 7}"/>')
    body.append(f'<text class="axis" x="{width - 14}" y="{height + 5}" text-anchor="end">mAP, percent</text>')
    return _svg(width, height + 10, title, body)


def _y_name(name: str, middle: float) -> str:
    """What the upright axis is."""
    turned = f'transform="rotate(-90 9 {middle:.1f})"'
    return f'<text class="axis" x="9" y="{middle:.1f}" text-anchor="middle" {turned}>{escape(name)}</text>'


def _scale(low: float, high: float, to_low: float, to_high: float) -> Callable[[float], float]:
    return lambda value: to_low + (value - low) / (high - low) * (to_high - to_low)


def _grid(levels: Sequence[float], to_y: Callable[[float], float], width: int) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{to_y(level):.1f}" y2="{to_y(level):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{to_y(level) + 4:.1f}" text-anchor="end">{level:g}</text>'
        for level in levels
    )


def _x_ticks(marks: Sequence[float], to_x: Callable[[float], float], height: int, show: Callable[[float], str]) -> str:
    return "".join(
        f'<text class="tick" x="{to_x(mark):.1f}" y="{height - 12}" text-anchor="middle">{show(mark)}</text>'
        for mark in marks
    )


def _polyline(x: np.ndarray, y: np.ndarray, to_x: Callable[[Any], Any], to_y: Callable[[Any], Any], kind: str) -> str:
    points = " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _short(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"


def _svg(width: int, height: int, title: str, body: Sequence[str]) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    return Markup(f"{head}{''.join(body)}</svg>")  # every text in the body is escaped above
