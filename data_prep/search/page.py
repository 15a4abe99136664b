"""The page of a search: each question with its picture and its tree, drawn from left to right."""

import dataclasses
import html
import re
from collections.abc import Sequence

from data_prep.search.tree import Node, Tree
from data_prep.show_page import visible
from vlaa_jax.errors import InputError
from vlaa_jax.evaluation.page import html_page, html_picture
from vlaa_jax.processing.records import Record

_LARGEST_SIDE = 480  # pixels; larger pictures are stored smaller
_WIDTH, _ACROSS, _BETWEEN = 236, 44, 10  # of a box; gap to the next column; gap to the next box
_HEAD, _LINE, _FOOT = 22, 15, 8
_CHARACTERS = 34  # of a line
_FIRST, _LAST = 3, 2  # steps of a long box that are shown
_ANSWER = re.compile(r"</think>\s*<answer>(.*)</answer>", re.DOTALL)

STYLE = """
article { grid-template-columns: minmax(0, 1fr); }
.asked { display: flex; flex-wrap: wrap; gap: 18px; }
.asked .pictures { display: flex; gap: 8px; }
.asked .pictures > svg { height: 168px; width: auto; }
.asked .words { flex: 1 1 320px; }
.tree { display: block; }
.tree .link { fill: none; stroke: var(--rule); stroke-width: 1.5; }
.tree .box { stroke: var(--v); stroke-opacity: .55; fill: var(--v); fill-opacity: .13; }
.tree .bar { fill: var(--v); }
.tree text { font-size: 11.5px; fill: var(--ink); }
.tree .head { fill: var(--quiet); font-variant-numeric: tabular-nums; }
.tree .value { fill: var(--ink); font-weight: 600; }
.tree .more { fill: var(--quiet); font-style: italic; }
.tree .right, .tree .wrong { font-weight: 600; text-anchor: end; }
.tree .right { fill: var(--after); } .tree .wrong { fill: var(--before); }
.scale { display: inline-block; width: 120px; height: 10px; border-radius: 5px; vertical-align: middle; margin: 0 8px;
  background: linear-gradient(to right, var(--before), var(--gold), var(--after)); }
"""


def page(title: str, summary_lines: Sequence[str], trees: Sequence[tuple[Record, Tree]]) -> str:
    """The whole page; equal input gives equal bytes.

    Args:
      title: of the page.
      summary_lines: which trees these are.
      trees: each with its question.
    """
    legend = (
        "<p class='note'>A box holds the steps that the same rollouts share. Its colour is their mean reward, "
        "0<span class='scale'></span>1; beside it stands how many rollouts there were. A box where rollouts end says "
        "whether the answer is right.</p>"
    )
    articles = "\n".join(_article(record, tree) for record, tree in trees)
    return html_page(
        visible(title), [visible(line) for line in summary_lines], {"Trees": legend + articles}, style=STYLE
    )


def _article(record: Record, tree: Tree) -> str:
    pictures = "".join(
        _picture(encoded, f"{record.id}, picture {number}") for number, encoded in enumerate(record.images, 1)
    )
    counts = f"{tree.rollouts} rollouts, {tree.right} right; mean reward {tree.root.mean:.2f}"
    return (
        f"<article><div class='asked'><div class='pictures'>{pictures}</div><div class='words'>"
        f"<p class='id'><b>{_text(record.verifier)}</b>{_text(record.id)} · {counts}</p>"
        f"<p class='question' dir='auto'>{_text(record.question)}</p>"
        f"<p class='gold' dir='auto'><span>gold</span> {_text(record.answer)}</p></div></div>"
        f"<div class='scroll' tabindex='0'>{draw_tree(tree)}</div></article>"
    )


def _picture(encoded: bytes, name: str) -> str:
    try:
        return html_picture(encoded, [], visible(name), largest_side=_LARGEST_SIDE)
    except InputError as error:
        return f"<p class='note'>{_text(f'{name}: {error}')}</p>"


@dataclasses.dataclass
class _Box:
    """Nodes that the same rollouts pass, one behind the other, and the boxes behind them.

    Attributes:
      nodes: in order; they share visits and rewards.
      children: the most visited first.
      top, left: in pixels, set by `_place`.
    """

    nodes: list[Node]
    children: list["_Box"]
    top: float = 0.0
    left: float = 0.0

    @property
    def lines(self) -> list[str]:
        """What is written in it: '' stands for the steps that are left out."""
        steps = [_clip(node.text) for node in self.nodes]
        return steps if len(steps) <= _FIRST + _LAST + 1 else [*steps[:_FIRST], "", *steps[-_LAST:]]

    @property
    def height(self) -> float:
        return _HEAD + _LINE * len(self.lines) + _FOOT


def boxes(tree: Tree) -> list[_Box]:
    """Those behind the root."""
    return _behind(tree.root)


def _behind(node: Node) -> list[_Box]:
    out = []
    for child in sorted(node.children.values(), key=lambda child: -child.visits):
        nodes = [child]
        while len(nodes[-1].children) == 1 and not nodes[-1].ends:
            (only,) = nodes[-1].children.values()
            if only.visits != child.visits:
                break
            nodes.append(only)
        out.append(_Box(nodes, _behind(nodes[-1])))
    return out


def _place(box: _Box, left: float, top: float) -> float:
    """Sets the places of a box and of all behind it; returns the height that they take."""
    box.left, inner = left, 0.0
    for child in box.children:
        inner += _place(child, left + _WIDTH + _ACROSS, top + inner) + _BETWEEN
    inner = max(inner - _BETWEEN, 0.0)
    if inner < box.height:  # what is behind stands in the middle
        for child in box.children:
            _lower(child, (box.height - inner) / 2)
    box.top = top + max(inner - box.height, 0.0) / 2
    return max(inner, box.height)


def _lower(box: _Box, by: float) -> None:
    box.top += by
    for child in box.children:
        _lower(child, by)


def draw_tree(tree: Tree) -> str:
    """The tree as SVG."""
    first, height = boxes(tree), 0.0
    for box in first:
        height += _place(box, 1.0, height + 1) + _BETWEEN
    placed, waiting = [], first[::-1]
    while waiting:
        placed.append(waiting.pop())
        waiting += placed[-1].children[::-1]
    width = max((box.left for box in placed), default=0.0) + _WIDTH + 1
    links = "".join(_link(box, child) for box in placed for child in box.children)
    drawn = "".join(map(_draw, placed))
    size = f"width='{width:g}' height='{max(height, 1):g}' viewBox='0 0 {width:g} {max(height, 1):g}'"
    return f"<svg class='tree' {size} role='img' aria-label='search tree'>{links}{drawn}</svg>"


def _link(box: _Box, child: _Box) -> str:
    x, y = box.left + _WIDTH, box.top + box.height / 2
    to_x, to_y, middle = child.left, child.top + child.height / 2, (box.left + _WIDTH + child.left) / 2
    return f"<path class='link' d='M{x:g} {y:g}C{middle:g} {y:g} {middle:g} {to_y:g} {to_x:g} {to_y:g}'/>"


def _draw(box: _Box) -> str:
    last, left, top = box.nodes[-1], box.left, box.top
    color = _color(last.mean)
    parts = [
        f"<g style='--v:{color}'><title>{_text(''.join(node.text for node in box.nodes).strip())}</title>",
        f"<rect class='box' x='{left:g}' y='{top:g}' width='{_WIDTH}' height='{box.height:g}' rx='6'/>",
        f"<rect class='bar' x='{left:g}' y='{top + 4:g}' width='4' height='{box.height - 8:g}' rx='2'/>",
        f"<text class='head' x='{left + 12:g}' y='{top + 16:g}'><tspan class='value'>{last.mean:.2f}</tspan>"
        f" · {last.visits} rollout{'s' * (last.visits > 1)}</text>",
    ]
    if last.ends:
        word = ("wrong", "right")[bool(last.right)]
        mark = "✓" if last.right else "✗"
        parts.append(f"<text class='{word}' x='{left + _WIDTH - 8:g}' y='{top + 16:g}'>{mark} {word}</text>")
    for number, line in enumerate(box.lines):
        place = f"x='{left + 12:g}' y='{top + _HEAD + _LINE * number + 11:g}'"
        more = f"… {len(box.nodes) - _FIRST - _LAST} more steps"
        parts.append(f"<text {place}>{_text(line)}</text>" if line else f"<text class='more' {place}>{more}</text>")
    return "".join([*parts, "</g>"])


def _color(value: float) -> str:
    """Between the colours of 0, 0.5 and 1."""
    low, high, share = ("--before", "--gold", 2 * value) if value < 0.5 else ("--gold", "--after", 2 * value - 1)
    return f"color-mix(in oklab,var({high}) {100 * share:.0f}%,var({low}))"


def _clip(text: str) -> str:
    """A step in one line; of the one that states the answer, the answer."""
    answer = _ANSWER.fullmatch(text.strip())
    line = " ".join((f"Answer: {answer[1]}" if answer else text).split()) or "(blank)"
    return line if len(line) <= _CHARACTERS else f"{line[: _CHARACTERS - 1]}…"


def _text(text: str) -> str:
    return html.escape(visible(text))
