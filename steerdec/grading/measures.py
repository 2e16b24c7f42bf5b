r"""Read answers that are numbers with something beside them: `18 eggs`, `336^\circ`, `2 hours and 30 minutes`.

People and models write a number with a unit, a contest letter, a base, or as a time of day. This file takes such an
answer apart, so that `18 eggs` is 18, and never half of it: `2 hours and 30 minutes` is not 2. A letter that stands
alone is a variable, not a unit: `5m` is not 5. In `5\text{ m}` it is a unit, because it was set as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from steerdec.common.numerals import MAX_CHARS, NUMBER, canonical_number

FULL_WIDTH: Final = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3002: ".", 0x3000: " "}
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname)"
    r"\s*\{([^{}]*)\}"
)
_TEXT, _END = "\x01", "\x02"  # around what was set as text
_DEGREE = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|\\textdegree\b|[°º]")
_PERCENT = re.compile(r"\\?%")
_LAYOUT = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|bf|rm)(?![A-Za-z])|(?<!\\)\\!|[~\u00a0\u2009\u202f]")
_SPACE = re.compile(r"(?<!\\)\\[,;: ]")
_LETTER = re.compile(r"^\(?(?P<letter>[A-J])[).:](?=\s|[-+$\\(0-9])\s*(?P<rest>.*[0-9].*)$")
_LETTER_AFTER = re.compile(r"^(?P<rest>.*[0-9].*?)\s*\((?P<letter>[A-J])\)$")
_BASE = re.compile(r"(?P<digits>[0-9]+|[0-9A-F]+)_\{?\s*(?P<base>[0-9]{1,2})\s*\}?")
_SEVERAL = re.compile(r"[0-9]+(?:\s*:\s*[0-9]+)+")
_NUMBER = re.compile(NUMBER)
# A unit: text, words of two letters or more, or a degree or percent sign; `per`, slashes and powers join units.
_WORDS = r"[A-Za-zµ][A-Za-z.]+"
_UNIT = re.compile(
    rf"(?:\x01degree\x02\s*[CFK](?![A-Za-z])|\x01[^\x01\x02]*\x02|{_WORDS}|\^\{{?[23]\}}?|/|\s|·|\\cdot)+"
)
_JOIN = re.compile(r"\s*(?:,|and|&)?\s*", re.IGNORECASE)
_PLURALS: Final = {"feet": "foot", "inches": "inch", "people": "person", "children": "child", "mice": "mouse"}


@dataclass(frozen=True)
class Measure:
    """What an answer says: canonical numbers, each with its unit ("" where it has none).

    `separator` is ":" for ratios and times of day; `base` is the subscript of a numeral, "" where it has none.
    """

    numbers: tuple[str, ...]
    units: tuple[str, ...]
    separator: str = ""
    base: str = ""

    def equals(self, other: Measure) -> bool:
        """Return whether both say the same; a unit or a base that only one of them names does not count."""
        if len(self.numbers) != len(other.numbers) or self.separator != other.separator:
            return False
        units = zip(self.units, other.units, strict=True)
        if len(self.numbers) > 1 and not self.separator and self.units != other.units:
            return False
        agree = all(not a or not b or a == b for a, b in units) and (
            not self.base or not other.base or self.base == other.base
        )
        return agree and self.numbers == other.numbers

    def __str__(self) -> str:
        """Return the form in which equal answers are counted: a single number stands without its unit."""
        if len(self.numbers) == 1:
            return self.numbers[0] + (f"_{self.base}" if self.base else "")
        if self.separator:
            return self.separator.join(self.numbers)
        return " ".join(f"{number} {unit}".strip() for number, unit in zip(self.numbers, self.units, strict=True))


def plain(latex: str) -> str:
    r"""Return the answer without layout: no `\left`, thin spaces, final period, or wrapper around the whole of it.

    What was set as text inside stands between the characters 1 and 2; :func:`bare` removes them.
    """
    text = latex.translate(FULL_WIDTH)
    text = text.replace("{,}", ",")
    text = _LAYOUT.sub(lambda found: "" if found[0].startswith("\\") else " ", text)
    text = _SPACE.sub(" ", text)
    while (unwrapped := _WRAPPER.sub(rf"{_TEXT}\1{_END}", text)) != text:
        text = unwrapped
    text = _DEGREE.sub(f" {_TEXT}degree{_END} ", text)
    text = _PERCENT.sub(f" {_TEXT}percent{_END} ", text)
    text = " ".join(text.split())
    # A wrapper around a number, `\textbf{18}` or `\text{18 eggs}`, says nothing about it.
    text = re.sub(r"\x01(?=[^\x02]*[0-9])([^\x01\x02]*)\x02", r"\1", text)
    text = re.sub(r"[.,;]+\s*\x02$", _END, text.strip())
    return text.rstrip(".,;").strip()


def bare(text: str) -> str:
    """Return a :func:`plain` text without the marks of what was set as text."""
    return " ".join(text.replace(_TEXT, " ").replace(_END, " ").split())


def is_words(text: str) -> bool:
    r"""Return whether a :func:`plain` text is words that were set as text, and nothing else: `\\text{even}`."""
    return re.fullmatch(r"\x01\s*[^\W\d_]{2}[^\d\x01\x02]*\x02", text) is not None


def without_letter(text: str) -> tuple[str, str]:
    """Return (contest letter or "", the answer beside it): `(C) 12` and `12 (C)` give ("C", "12")."""
    unmarked = re.sub(r"[\x01\x02]", "", text)
    for pattern in (_LETTER, _LETTER_AFTER):
        if found := pattern.match(unmarked):
            return found["letter"], found["rest"].strip()
    return "", text


def read_measure(latex: str) -> Measure | None:
    """Return what the answer says, None where it is not numbers with units, a base, a ratio or a time of day."""
    if len(latex) > MAX_CHARS:
        return None
    _, text = without_letter(plain(latex))
    text = re.sub(r"^[$({\[\s]+(?=[^()\[\]{}]*$)|[$\s]+$", "", text.replace("**", "").replace("\\$", "$"))
    if found := _BASE.fullmatch(text):
        return Measure((found["digits"].lstrip("0") or "0",), ("",), base=found["base"])
    if found := _SEVERAL.match(text):
        numbers = tuple(part.strip().lstrip("0") or "0" for part in found[0].split(":"))
        unit = _read_unit(text[found.end() :])
        return None if unit is None else Measure(numbers, (unit,) + ("",) * (len(numbers) - 1), separator=":")
    return _read_pairs(text)


def _read_pairs(text: str) -> Measure | None:
    numbers: list[str] = []
    units: list[str] = []
    at = 0
    while at < len(text):
        if numbers:
            joined = _JOIN.match(text, at)
            at = joined.end() if joined else at
        number = _NUMBER.match(text, at)
        if number is None:
            return None
        at = number.end()
        unit = _UNIT.match(text, at)
        raw = unit[0] if unit else ""
        at += len(raw)
        if at < len(text):  # in `2 hours and 30 minutes` the word that joins two measures is not part of a unit
            raw = re.sub(r"(?:\band|&)[\s\x02]*$", _END if raw.rstrip().endswith(_END) else "", raw)
        name = _read_unit(raw)
        if name is None:
            return None
        numbers.append(canonical_number(number))
        units.append(name)
    if len(numbers) > 1 and "" in units:
        return None  # a list of numbers is no measure
    return Measure(tuple(numbers), tuple(units)) if numbers else None


def _read_unit(raw: str) -> str | None:
    """Return a unit in the singular and in lower case, None where the text is none: a letter alone is a variable."""
    if not raw.strip(" \x01\x02"):
        return ""
    if not _UNIT.fullmatch(raw):
        return None
    words = re.findall(r"[A-Za-zµ]+|\^|[0-9]|/", raw)
    return " ".join(_PLURALS.get(word, _singular(word)) for word in (word.lower() for word in words))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def without_unit(latex: str) -> str:
    r"""Return the answer for a computer algebra system, without the unit after it: `\frac{1}{2}\text{ cup}`."""
    _, text = without_letter(plain(latex))
    found = re.fullmatch(rf"(?P<value>.*[0-9}})\]])\s*(?:\x01[^\x01\x02]*\x02|\s{_WORDS})+", text)
    if found and "percent" not in text and not re.search(rf"{_TEXT}|(?<![\\A-Za-z]){_WORDS}", found["value"]):
        return found["value"]
    return bare(text).replace(" percent", "\\%")
