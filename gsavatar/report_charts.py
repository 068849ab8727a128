"""Charts of the report as inline SVG; colours come from the page's style, light or dark."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 1000, 240
LEFT, RIGHT, TOP, BOTTOM = 62, 22, 12, 40
X_TICKS, Y_TICKS = 9, 5

Values = Sequence["float | None"]
Place = Callable[[float, float], "tuple[float, float]"]
"""From values to pixels of the chart."""


@dataclass(frozen=True)
class Line:
    """One curve; ``style`` is a class of the page: real, ours or soft."""

    name: str
    values: Values
    style: str = "ours"


def line_chart(
    x: Sequence[float], lines: Sequence[Line], x_label: str, y_label: str,
    *, level: tuple[float, str] | None = None, from_zero: bool = True, height: int = HEIGHT,
) -> str:  # fmt: skip
    """Curves over a common x with axes, gaps where a value is unknown; "" if nothing is known.

    ``level`` is a dashed line with its name.
    """
    known = [v for line in lines for v in line.values if v is not None]
    if len(x) < 2 or not known:
        return ""
    low = 0.0 if from_zero else min(known)
    high = max([*known, level[0] if level else -math.inf])
    y_ticks = ticks(low, high if high > low else low + 1.0, Y_TICKS)
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    x_low, x_high = min(x), max(x)

    def place(px: float, py: float) -> tuple[float, float]:
        across = (px - x_low) / (x_high - x_low or 1.0) * (WIDTH - LEFT - RIGHT)
        up = (py - low) / (high - low or 1.0) * (height - TOP - BOTTOM)
        return LEFT + across, height - BOTTOM - up

    x_ticks = ticks(x_low, x_high, X_TICKS)
    parts = [_grid(x_ticks, y_ticks, place, height), _names(x_label, y_label, height)]
    parts += [f'<path class="{line.style}" d="{_path(x, line.values, place)}"/>' for line in lines]
    if level is not None:
        y = place(x_low, level[0])[1]
        parts.append(
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick named" x="{WIDTH - RIGHT - 4}" y="{y - 5:.1f}" text-anchor="end">'
            f"{html.escape(level[1])}</text>"
        )
    label = html.escape(f"{y_label} over {x_label}: {', '.join(line.name for line in lines)}")
    legend = "".join(
        f'<span><i class="{line.style}"></i>{html.escape(line.name)}</span>' for line in lines
    )
    size = f'viewBox="0 0 {WIDTH} {height}"'
    picture = f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<div class="chart"><div class="legend">{legend}</div>{picture}</div>'


def _grid(x_ticks: list[float], y_ticks: list[float], place: Place, height: int) -> str:
    """Lines and numbers of the ticks."""
    parts = []
    for tick in y_ticks:
        y = place(0, tick)[1]
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in x_ticks:
        at = place(tick, 0)[0]
        if LEFT - 1 <= at <= WIDTH - RIGHT + 1:
            parts.append(
                f'<text class="tick" x="{at:.1f}" y="{height - BOTTOM + 17}" '
                f'text-anchor="middle">{tick:g}</text>'
            )
    return "".join(parts)


def _names(x_label: str, y_label: str, height: int) -> str:
    """Names of the axes."""
    middle = (TOP + height - BOTTOM) / 2
    return (
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{height - 5}" '
        f'text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text class="axis" transform="translate(14 {middle}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y_label)}</text>'
    )


def _path(x: Sequence[float], values: Values, place: Place) -> str:
    """SVG path with a gap wherever a value is unknown; lone values become a dot."""
    commands: list[str] = []
    pen_down = False
    for i, (px, value) in enumerate(zip(x, values, strict=True)):
        if value is None:
            pen_down = False
            continue
        a, b = place(px, value)
        alone = not pen_down and (i + 1 == len(values) or values[i + 1] is None)
        commands.append(f"{'L' if pen_down else 'M'}{a:.1f} {b:.1f}" + ("h0.1" if alone else ""))
        pen_down = True
    return "".join(commands)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values that cover [low, high], about ``count``."""
    raw = max(high - low, 1e-12) / count
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def bars(items: Sequence[tuple[str, float, str]], full: float | None = None) -> str:
    """Horizontal bars of (name, value, words); "" if there are none.

    ``full`` is the value of a whole bar, by default the largest.
    """
    largest = max((value for _, value, _ in items), default=0.0)
    largest = largest if full is None else full
    if largest <= 0:
        return ""
    rows = "".join(
        f'<div class="bar"><span>{html.escape(name)}</span>'
        f'<b><i style="width:{max(0.4, 100 * value / largest):.1f}%"></i></b>'
        f"<em>{html.escape(words)}</em></div>"
        for name, value, words in items
    )
    return f'<div class="bars">{rows}</div>'


def density_map(
    x: Sequence[float], y: Sequence[float], x_label: str, y_label: str, *, cell: float,
    least: tuple[float, float], height: int = 320,
) -> str:  # fmt: skip
    """How often pairs of values fall into square cells, darker for more often; "" if none do.

    The axes reach from minus to plus ``least`` (x, y), and further where values do.
    """
    pairs = [(math.floor(a / cell), math.floor(b / cell)) for a, b in zip(x, y, strict=True)]
    if not pairs:
        return ""
    counts: dict[tuple[int, int], int] = {}
    for pair in pairs:
        counts[pair] = counts.get(pair, 0) + 1
    x_ticks, y_ticks = (
        ticks(min(-reach, min(v) * cell), max(reach, (max(v) + 1) * cell), count)
        for v, reach, count in zip(zip(*pairs, strict=True), least, (12, 6), strict=True)
    )

    def place(px: float, py: float) -> tuple[float, float]:
        across = (px - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)
        up = (py - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (height - TOP - BOTTOM)
        return LEFT + across, height - BOTTOM - up

    most = math.log1p(max(counts.values()))
    parts = [_grid(x_ticks, y_ticks, place, height), _names(x_label, y_label, height)]
    for (a, b), count in sorted(counts.items()):
        share = 0.15 + 0.85 * math.log1p(count) / most
        left, top = place(a * cell, (b + 1) * cell)
        right, bottom = place((a + 1) * cell, b * cell)
        parts.append(
            f'<rect class="cell" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}" fill-opacity="{share:.2f}">'
            f"<title>{count} frames</title></rect>"
        )
    label = html.escape(f"{y_label} over {x_label}, darker for more frames")
    size = f'viewBox="0 0 {WIDTH} {height}"'
    picture = f'<svg {size} role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<div class="chart">{picture}</div>'
