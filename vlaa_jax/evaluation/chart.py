"""Curves and points as SVG, in a page or as a file; colours come from the page's style (`line0`, `line1`, ...)."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.report_style import STYLE

COLOURS = 6

_WIDTH, _HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 38
_LINE = 18  # height of a line of a picture's legend
_HOVERED = 100  # longer lines get no tooltips: they would double the size of the page


class Series(NamedTuple):
    """One line: values at steps, and the ends of an interval around each value if there is one.

    Values that have `names` are points of their own, which no line joins.
    """

    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    names: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Curve:
    """Lines that share their axes, at most `COLOURS`.

    Attributes:
      title: what is shown.
      series: by name; a plain tuple `(steps, values)` or `(steps, values, low, high)` does.
      unit: of the values.
      limits: values that the vertical axis reaches at least, so that curves side by side can be compared.
      axis: what the steps are.
      labels: names of the steps 0, 1, 2, ... where these are no numbers.
    """

    title: str
    series: Mapping[str, Series | tuple]
    unit: str = ""
    limits: tuple[float, float] | None = None
    axis: str = "step"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.series) > COLOURS:
            raise InputError(f"curve {self.title!r}: {len(self.series)} lines, at most {COLOURS} can be told apart")
        for name, line in self.lines().items():
            lengths = {len(part) for part in line if part is not None}
            if len(lengths) != 1 or 0 in lengths or (line.low is None) != (line.high is None):
                raise InputError(
                    f"curve {self.title!r}, {name!r}: steps, values, low and high need one equal length above 0"
                )
            if not all(math.isfinite(number) for part in line[:4] if part is not None for number in part):
                raise InputError(f"curve {self.title!r}, {name!r}: a number is not finite")

    def lines(self) -> dict[str, Series]:
        return {name: Series(*line) for name, line in self.series.items()}


def html_curve(curve: Curve) -> str:
    """A figure: title, legend with first and last value of each line, the chart."""
    lines = curve.lines()
    legend = "".join(
        f"<li class='line{index}'><svg viewBox='0 0 18 10' aria-hidden='true'><path class='stroke' d='M1 5H17'/></svg>"
        f"{html.escape(name)} <b>{_ends(line)}</b></li>"
        for index, (name, line) in enumerate(lines.items())
    )
    unit = f" <small>{html.escape(curve.unit)}</small>" if curve.unit else ""
    return (
        f"<figure class='curve'><figcaption>{html.escape(curve.title)}{unit}</figcaption>"
        f"<ul class='legend'>{legend}</ul>{_chart(curve, lines)}</figure>"
    )


def svg_curve(curve: Curve) -> str:
    """The same as a file of its own, on light and on dark ground."""
    lines = curve.lines()
    top = _LINE * (len(lines) + 3)
    legend = "".join(
        f"<path class='line{index} stroke' d='M12 {at - 4}H30'/><text x='38' y='{at}'>{html.escape(name)}"
        f"{': ' if _ends(line) else ''}{_ends(line)}</text>"
        for index, (name, line) in enumerate(lines.items())
        for at in [_LINE * (index + 3)]
    )
    place = f" y='{top}' width='{_WIDTH}' height='{_HEIGHT}'"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {top + _HEIGHT + 6}' width='{2 * _WIDTH}'>"
        f"<style>{STYLE}svg {{ font-family: system-ui, sans-serif; }} .ground {{ fill: var(--card); }}</style>"
        f"<rect class='ground' width='100%' height='100%'/><text x='12' y='{_LINE}' font-weight='600'>"
        f"{html.escape(curve.title)}</text><text x='12' y='{2 * _LINE}'>{html.escape(curve.unit)}</text>{legend}"
        f"{_chart(curve, lines, place)}</svg>\n"
    )


def _chart(curve: Curve, lines: Mapping[str, Series], place: str = "") -> str:
    """The chart; `place` are attributes of one inside another picture."""
    values = [v for line in lines.values() for part in (line.values, line.low, line.high) for v in part or ()]
    steps = [step for line in lines.values() for step in line.steps]
    if not values:
        return "<p class='note'>No values.</p>"
    values += curve.limits or ()
    y_ticks, x_ticks = ticks(min(values), max(values), 5), ticks(min(steps), max(steps), 5, whole=True)
    x_ticks = range(len(curve.labels)) if curve.labels else x_ticks
    bottom, top = y_ticks[0], y_ticks[-1]
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def x(step: float) -> float:
        return _LEFT + (step - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}'{place} role='img' aria-label='{html.escape(curve.title)}'>"]
    for tick in y_ticks:
        parts.append(f"<path class='grid' d='M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}'/>")
        parts.append(f"<text class='y' x='{_LEFT - 8}' y='{y(tick):.1f}' dy='.32em'>{_number(tick)}</text>")
    for tick in x_ticks:
        if first <= tick <= last:
            parts.append(f"<text class='x' x='{x(tick):.1f}' y='{_HEIGHT - _BOTTOM + 18}'>{_step(curve, tick)}</text>")
    parts.append(
        f"<text class='x' x='{(_LEFT + _WIDTH - _RIGHT) / 2}' y='{_HEIGHT - 2}'>{html.escape(curve.axis)}</text>"
    )
    for index, line in enumerate(lines.values()):
        if line.low is not None:
            upper = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(line.steps, line.high, strict=True)]
            lower = [f"{x(s):.1f} {y(v):.1f}" for s, v in zip(line.steps, line.low, strict=True)]
            parts.append(f"<path class='line{index} band' d='M{'L'.join(upper + lower[::-1])}Z'/>")
    for index, (name, line) in enumerate(lines.items()):
        points = [(x(s), y(v)) for s, v in zip(line.steps, line.values, strict=True)]
        if line.names is None:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
            parts.append(f"<path class='line{index} stroke' d='M{path}'/>")
        marked = points[-1:] if line.names is None else points
        parts += [f"<circle class='line{index} dot' cx='{a:.1f}' cy='{b:.1f}' r='4'/>" for a, b in marked]
        if len(points) <= _HOVERED:
            parts += [
                f"<circle class='hover' cx='{a:.1f}' cy='{b:.1f}' r='7'><title>{html.escape(text)}</title></circle>"
                for (a, b), text in zip(points, _tooltips(name, line, curve), strict=True)
            ]
    return "".join([*parts, "</svg>"])


def _ends(line: Series) -> str:
    """First and last value of a line."""
    return "" if line.names else f"{_number(line.values[0])} → {_number(line.values[-1])}"


def _tooltips(name: str, line: Series, curve: Curve) -> list[str]:
    texts = [
        f"{own}, {curve.axis} {_step(curve, step)}: {_number(value)}"
        for own, step, value in zip(line.names or [name] * len(line.values), line.steps, line.values, strict=True)
    ]
    if line.low is None:
        return texts
    ends = zip(line.low, line.high, strict=True)
    return [f"{text} ({_number(low)} to {_number(high)})" for text, (low, high) in zip(texts, ends, strict=True)]


def _step(curve: Curve, step: float) -> str:
    return curve.labels[int(step)] if curve.labels else f"{step:g}"


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
