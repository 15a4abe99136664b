"""Curves over steps as inline SVG; colours come from the page's style (`line0`, `line1`, ...)."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vlaa_jax.errors import InputError

COLOURS = 6

_WIDTH, _HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 38
_HOVERED = 100  # longer lines get no tooltips: they would double the size of the page


class Series(NamedTuple):
    """One line: values at steps, and the ends of an interval around each value if there is one."""

    steps: Sequence[int]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """Lines that share their axes, at most `COLOURS`.

    Attributes:
      title: what is shown.
      series: by name; a plain tuple `(steps, values)` or `(steps, values, low, high)` does.
      unit: of the values.
      limits: values that the vertical axis reaches at least, so that curves side by side can be compared.
    """

    title: str
    series: Mapping[str, Series | tuple]
    unit: str = ""
    limits: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if len(self.series) > COLOURS:
            raise InputError(f"curve {self.title!r}: {len(self.series)} lines, at most {COLOURS} can be told apart")
        for name, line in self.lines().items():
            lengths = {len(part) for part in line if part is not None}
            if len(lengths) != 1 or 0 in lengths or (line.low is None) != (line.high is None):
                raise InputError(
                    f"curve {self.title!r}, {name!r}: steps, values, low and high need one equal length above 0"
                )
            if not all(math.isfinite(number) for part in line if part is not None for number in part):
                raise InputError(f"curve {self.title!r}, {name!r}: a number is not finite")

    def lines(self) -> dict[str, Series]:
        return {name: Series(*line) for name, line in self.series.items()}


def html_curve(curve: Curve) -> str:
    """A figure: title, legend with first and last value of each line, the chart."""
    lines = curve.lines()
    legend = "".join(
        f"<li class='line{index}'><svg viewBox='0 0 18 10' aria-hidden='true'><path class='stroke' d='M1 5H17'/></svg>"
        f"{html.escape(name)} <b>{_number(line.values[0])} → {_number(line.values[-1])}</b></li>"
        for index, (name, line) in enumerate(lines.items())
    )
    unit = f" <small>{html.escape(curve.unit)}</small>" if curve.unit else ""
    return (
        f"<figure class='curve'><figcaption>{html.escape(curve.title)}{unit}</figcaption>"
        f"<ul class='legend'>{legend}</ul>{_chart(curve.title, lines, curve.limits or ())}</figure>"
    )


def _chart(title: str, lines: Mapping[str, Series], limits: Sequence[float]) -> str:
    values = [v for line in lines.values() for part in (line.values, line.low, line.high) for v in part or ()]
    steps = [step for line in lines.values() for step in line.steps]
    if not values:
        return "<p class='note'>No values.</p>"
    values += limits
    y_ticks, x_ticks = ticks(min(values), max(values), 5), ticks(min(steps), max(steps), 5, whole=True)
    bottom, top = y_ticks[0], y_ticks[-1]
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step: float) -> float:
        return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{html.escape(title)}'>"]
    for tick in y_ticks:
        parts.append(f"<path class='grid' d='M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}'/>")
        parts.append(f"<text class='y' x='{_LEFT - 8}' y='{y(tick):.1f}' dy='.32em'>{_number(tick)}</text>")
    for tick in x_ticks:
        if first <= tick <= last:
            parts.append(f"<text class='x' x='{x(tick):.1f}' y='{_HEIGHT - _BOTTOM + 18}'>{tick:g}</text>")
    parts.append(f"<text class='x' x='{(_LEFT + _WIDTH - _RIGHT) / 2}' y='{_HEIGHT - 2}'>step</text>")
    for index, line in enumerate(lines.values()):
        if line.low is not None:
            upper = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(line.steps, line.high, strict=True)]
            lower = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(line.steps, line.low, strict=True)]
            parts.append(f"<path class='line{index} band' d='M{'L'.join(upper + lower[::-1])}Z'/>")
    for index, (name, line) in enumerate(lines.items()):
        points = [(x(s), y(v)) for s, v in zip(line.steps, line.values, strict=True)]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        parts.append(f"<path class='line{index} stroke' d='M{path}'/>")
        parts.append(f"<circle class='line{index} dot' cx='{points[-1][0]:.1f}' cy='{points[-1][1]:.1f}' r='4'/>")
        if len(points) <= _HOVERED:
            parts += [
                f"<circle class='hover' cx='{a:.1f}' cy='{b:.1f}' r='7'><title>{html.escape(text)}</title></circle>"
                for (a, b), text in zip(points, _tooltips(name, line), strict=True)
            ]
    return "".join([*parts, "</svg>"])


def _tooltips(name: str, line: Series) -> list[str]:
    texts = [f"{name}, step {step}: {_number(value)}" for step, value in zip(line.steps, line.values, strict=True)]
    if line.low is None:
        return texts
    ends = zip(line.low, line.high, strict=True)
    return [f"{text} ({_number(low)} to {_number(high)})" for text, (low, high) in zip(texts, ends, strict=True)]


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About `count` round numbers, evenly spaced, from at or below `low` to at or above `high`."""
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / count))
    distance = next(factor * power for factor in (1, 2, 5, 10) if factor * power * count >= span * (1 - 1e-9))
    distance = max(1, round(distance)) if whole else distance
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    last = max(last, first + 1)
    # Dividing by a whole number of steps a unit keeps 0.3 from becoming 0.30000000000000004.
    return [number * distance if distance >= 1 else number / round(1 / distance) for number in range(first, last + 1)]


def _number(value: float) -> str:
    """Three significant digits, a proper minus sign."""
    return f"{value:.3g}".replace("-", "−")
