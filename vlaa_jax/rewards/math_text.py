r"""Reading a mathematical answer as text, before any algebra: delimiters, boxes, unit, percent sign, sides of `=`.

Text goes in as a model or a data set writes it (`\boxed{\frac12}`, `$x = 3$ cm`, `50\%`, `√2`, `1,000`); LaTeX that
math-verify parses comes out.
"""

import dataclasses
import functools
import re
import unicodedata

from vlaa_jax.rewards.extract import closing_brace, normalise, unwrap

LONGEST = 2048  # bytes

_LEAD = re.compile(r"(?:the\s+)?(?:\w+\s+)?(?:answer|result|value|solution)(?:\s+is\b\s*:?|\s*:)", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DELIMITER = re.compile(r"(?<!\\)(?:\$\$?|\\[()\[\]])")
_SPACE = r"(?:\s|\\[,;:! ]|\\quad|\\qquad|~)"
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?:\\,|\{,\})\d{3})+(?!\d)")
_COMMA_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_BARE_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)(?!\d)")
_MIXED_NUMBER = re.compile(r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_SIDE_BY_SIDE = re.compile(rf"\d{_SPACE}+[\d.]")
_TEXT_GROUP = re.compile(r"\\(?:text|mathrm|mbox|operatorname)\s*\{[^{}]*\}")
# Words, as opposed to products of variables: two in a row, or four small letters that name no function.
_PROSE = re.compile(
    r"(?<![\\A-Za-z{])(?:[A-Za-z]{2,}\s+[A-Za-z]{2,}|(?!(?:sqrt|sinh|cosh|tanh|arcsin|arccos|arctan)(?![a-z]))[a-z]{4,})"
)
_SEVERAL = re.compile(r"(?<!\\)[,;]|\b(?:or|and)\b")
_EQUALS = re.compile(r"(?<![<>!\\:])=")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|percent)$")
_NAME = re.compile(
    r"\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:'|\([A-Za-z0-9, ]*\))?|\\(?:angle|triangle|overline|widehat)\s*\{?\s*[A-Z]+\s*\}?"
)

# Canonical unit: spellings besides itself. Spellings of two letters and more may have a plural s.
_SPELLINGS = {
    "mm": ("millimeter", "millimetre"),
    "cm": ("centimeter", "centimetre"),
    "dm": ("decimeter", "decimetre"),
    "m": ("meter", "metre"),
    "km": ("kilometer", "kilometre"),
    "inch": ("inches",),
    "ft": ("feet", "foot"),
    "yd": ("yard",),
    "mile": (),
    "g": ("gram",),
    "kg": ("kilogram",),
    "s": ("sec", "second"),
    "min": ("minute",),
    "h": ("hr", "hour"),
    "L": ("liter", "litre"),
    "mL": ("ml", "milliliter", "millilitre"),
    "unit": (),
    "degree": ("deg",),
}
_UNITS = {
    name + plural: unit
    for unit, others in _SPELLINGS.items()
    for name in (unit, *others)
    for plural in (("", "s") if len(name) > 1 else ("",))
}
_LONG_UNIT = "|".join(sorted((re.escape(name) for name in _UNITS if len(name) > 1), key=len, reverse=True))
_UNIT = re.compile(
    rf"{_SPACE}*(?:"
    r"(?P<degree>\^\{?\s*\\circ\s*\}?|\\degree)"
    r"|\\(?:text|mathrm|mbox)\s*\{(?P<words>[A-Za-z./^23 ]*[A-Za-z][A-Za-z./^23 ]*)\}"
    rf"|(?P<plain>(?:(?:square|sq|cubic|cu)\s+)?(?:{_LONG_UNIT}))"
    r"|(?<=\s)(?P<letter>[mgshL])"  # `5 m` is a length, `5m` is a product
    r")\s*(?:\^\{?(?P<power>[23])\}?)?$"
)
_UNIT_NAME = re.compile(r"(?:(?P<prefix>square|sq|cubic|cu)\s+)?(?P<name>.*?)\s*(?:\^(?P<power>[23]))?")

_SIGNS = str.maketrans(
    {"×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "±": r"\pm ", "π": r"\pi ", "∞": r"\infty "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "°": r"^{\circ}"}
)


@dataclasses.dataclass(frozen=True)
class Expression:
    """One answer or gold: LaTeX without delimiters, boxes, unit and percent sign.

    Attributes:
      sides: the sides of its chain of equalities, one when it has no equals sign.
      percent: whether the last side had a percent sign.
      unit: canonical name of the last side's unit, or ''.
    """

    sides: tuple[str, ...]
    percent: bool = False
    unit: str = ""

    @property
    def value(self) -> str:
        """The last side as written."""
        return self.sides[-1]

    @property
    def latex(self) -> str:
        """The whole chain; a percentage as a fraction of 100."""
        return " = ".join((*self.sides[:-1], self._number))

    @property
    def latex_without_percent(self) -> str:
        return " = ".join(self.sides)

    @property
    def claims(self) -> tuple[str, ...]:
        """The sides that claim a value: all but mere names such as `x`, `f(2)` or `\\angle ABC`."""
        return tuple(side for side in (*self.sides[:-1], self._number) if not _NAME.fullmatch(side)) or (self._number,)

    @property
    def normal_form(self) -> str:
        """For people and logs."""
        return " = ".join(self.sides) + (r"\%" if self.percent else "") + (self.unit and rf" \text{{{self.unit}}}")

    @property
    def _number(self) -> str:
        return rf"\frac{{{self.value}}}{{100}}" if self.percent else self.value


@functools.lru_cache(maxsize=65536)
def read(text: str) -> tuple[Expression | None, str]:
    """Reads an answer or a gold, without algebra.

    Returns:
      (expression, '') or (None, the rule that was broken: `too_long`, `prose`, `side_by_side`, `unparsable`).
    """
    if len(text.encode(errors="replace")) > LONGEST:
        return None, "too_long"
    latex = _latex_signs(_open_boxes(unwrap(normalise(text))))
    latex = _DELIMITER.sub(" ", latex).replace(r"\$", "").strip()
    lead = _LEAD.match(latex)
    latex = unwrap(" ".join(latex[lead.end() if lead else 0 :].replace("**", "^").split()).rstrip(",; "))
    latex = _SPACED_THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), latex)
    if not re.search(r"[(\[{]", latex):  # (1,234) is a pair
        latex = _COMMA_THOUSANDS.sub(lambda match: match[0].replace(",", ""), latex)
    latex = _BARE_FRACTION.sub(r"\\frac{\1}{\2}", latex)
    latex = _MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", latex)

    sides = [latex] if _SEVERAL.search(latex) else [side.strip() for side in _EQUALS.split(latex)]
    percent, unit = None, ""
    if not _SEVERAL.search(latex):
        percent = _PERCENT.search(sides[-1])
        if percent:
            sides[-1] = sides[-1][: percent.start()]
        sides[-1], unit = _split_unit(sides[-1])
    if not all(sides):
        return None, "unparsable"
    if any(_SIDE_BY_SIDE.search(side) for side in sides):
        return None, "side_by_side"
    if any(_PROSE.search(_TEXT_GROUP.sub("", side)) for side in sides):
        return None, "prose"
    return Expression(tuple(sides), bool(percent), unit), ""


def _open_boxes(text: str) -> str:
    r"""Replaces each `\boxed{...}` by its content."""
    while box := _BOX.search(text):
        end = closing_brace(text, box.end())
        if end < 0:
            return text
        text = f"{text[: box.start()]} {text[box.end() : end]} {text[end + 1 :]}"
    return text


def _latex_signs(text: str) -> str:
    """Mathematical characters and calculator spellings as LaTeX: ², ½, √2, ×, pi, sqrt(2)."""
    written = []
    for character in text:
        kind, *codes = unicodedata.decomposition(character).split() or [""]
        plain = "".join(chr(int(code, 16)) for code in codes).replace("\N{MINUS SIGN}", "-") if kind[:1] == "<" else ""
        if kind == "<super>":
            written.append(f"^{{{plain}}}")
        elif kind == "<sub>":
            written.append(f"_{{{plain}}}")
        elif kind == "<fraction>":
            numerator, _, denominator = plain.partition("\N{FRACTION SLASH}")
            written.append(rf"\frac{{{numerator}}}{{{denominator}}}")
        else:
            written.append(character)
    text = "".join(written).replace("}^{", "").replace("}_{", "").translate(_SIGNS)
    text = re.sub(r"√\s*\(?\s*(\w+)\s*\)?", r"\\sqrt{\1}", text)
    text = re.sub(r"\\?sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    return re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text)


def _split_unit(side: str) -> tuple[str, str]:
    """(the number, canonical unit or '') of a number with a unit; anything else comes back unchanged."""
    match = _UNIT.search(side)
    if match is None:
        return side, ""
    number = side[: match.start()].strip()
    bare = re.sub(r"\\(?:sqrt|[dt]?frac|pi|times|cdot)(?![A-Za-z])", "", number)
    if not re.search(r"\d|\\pi", number) or re.search(r"[A-Za-z]", bare):
        return side, ""
    if match["degree"]:
        return number, "degree"
    words = " ".join((match["words"] or match["plain"] or match["letter"]).replace(".", " ").split())
    if _SEVERAL.search(words):
        return side, ""
    parts = _UNIT_NAME.fullmatch(words)
    name = _UNITS.get(parts["name"]) or _UNITS.get(parts["name"].casefold(), parts["name"].casefold())
    power = match["power"] or parts["power"] or {"sq": "2", "cu": "3"}.get((parts["prefix"] or "")[:2], "")
    return number, f"{name}^{power}" if power else name
