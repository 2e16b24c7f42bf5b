r"""Read answers that are numbers with something beside them: `18 eggs`, `336^\circ`, `2 hours and 30 minutes`.

People and models write a number with a unit, a contest letter, a base, or as a time of day. This file takes such an
answer apart, so that `18 eggs` is 18, and never half of it: `2 hours and 30 minutes` is not 2. What counts as a unit
is in :mod:`steerdec.grading.units`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from steerdec.common.numerals import MAX_CHARS, NUMBER, canonical_number
from steerdec.grading.spelling import CHARACTERS, bare, plain, without_letter
from steerdec.grading.units import is_unit_word, read_unit, same_unit

_BASES: Final = {"two": "2", "three": "3", "four": "4", "eight": "8", "ten": "10", "twelve": "12", "sixteen": "16"}
_BASE = re.compile(  # 101_2, (101)_{2}, 101_{two}, 101 (base 2)
    r"\(?(?P<digits>[0-9A-Fa-f]+)\)?\s*(?:_\s*\{?|\(?base)\s*(?:base)?\s*"
    rf"\(?(?P<base>[0-9]{{1,2}}|{'|'.join(_BASES)})\)?\s*\}}?\)?"
)
_SEVERAL = re.compile(r"[0-9]+(?:\s*:\s*[0-9]+)+")
_NUMBER = re.compile(NUMBER)
_JOIN = re.compile(r"\s*(?:,|and|&)?\s*", re.IGNORECASE)
MAX_STATED_CHARS: Final = 200  # of a sentence that states an answer
# Where a statement of an answer ends: with its sentence, or where it begins to say why.
_SAID = re.compile(
    r"\n|[.;!?](?=\s|$)|,(?=\s+[^\s0-9$\\])|\s*\((?=[^)]*[0-9 ])|\s+and\s+(?!(?:a|half)\b|[0-9$\\])"
    r"|\s+(?:because|since|so|as|which|when|where|if|after|is|are)\b"
)
_VALUE = re.compile(
    r"(?P<value>.*(?:[0-9})\]]|\\pi))"
    r"(?P<unit>\s*(?:\s*\x01[^\x01\x02]*\x02(?:\s*\^\s*\{?\s*-?[1-4]\s*\}?)?|\s[A-Za-z.]+)+)"
)


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
        agree = all(same_unit(a, b) for a, b in units) and (not self.base or not other.base or self.base == other.base)
        return agree and self.numbers == other.numbers

    def __str__(self) -> str:
        """Return the form in which equal answers are counted: a single number stands without its unit."""
        if len(self.numbers) == 1:
            return self.numbers[0] + (f"_{self.base}" if self.base else "")
        if self.separator:
            return self.separator.join(self.numbers)
        return " ".join(f"{number} {unit}".strip() for number, unit in zip(self.numbers, self.units, strict=True))


def read_measure(text: str) -> Measure | None:
    """Return what a plain answer (see `spelling`) says, None if it is not a number with a unit.

    A base, a ratio and a time of day are measures too.
    """
    if len(text) > MAX_CHARS:
        return None
    _, text = without_letter(text)
    text = re.sub(r"^[$({\[\s]+(?=[^()\[\]{}]*$)|[$\s]+$", "", text.replace("**", "").replace("\\$", "$"))
    if found := _BASE.fullmatch(bare(text)):
        base = found["base"]
        digits = found["digits"].upper().lstrip("0") or "0"
        return Measure((digits,), ("",), base=_BASES.get(base, base))
    if found := _SEVERAL.match(text):
        numbers = tuple(part.strip().lstrip("0") or "0" for part in found[0].split(":"))
        unit = read_unit(text, found.end())
        if unit is None or unit.scale or text[unit.end :].strip():
            return None
        return Measure(numbers, (unit.name,) + ("",) * (len(numbers) - 1), separator=":")
    return _read_pairs(text)


def read_stated(text: str) -> str | None:
    """Return the number that a text begins with, unless it is a part of something longer: `18 eggs, as I said`.

    It is read up to the end of the sentence or of what is said about it. None where more than a unit is left there:
    another number, an operator, a variable.
    """
    line = _SAID.split(text[:MAX_STATED_CHARS], maxsplit=1)[0].translate(CHARACTERS)
    line = re.sub(r"\\?\$|\\[()\[\]]|\*\*", " ", line)
    # In a sentence a letter after a space is a unit: nobody writes "the answer is 5 m" for a product.
    measure = read_measure(plain(re.sub(r"(?<=[0-9]) +([mghslLJNWV])\s*$", r"\\text{ \1}", line)))
    if measure is None or len(measure.numbers) != 1 or measure.base:
        return None
    return measure.numbers[0]


def _read_pairs(text: str) -> Measure | None:
    numbers: list[str] = []
    units: list[str] = []
    at = 0
    while at < len(text):
        if numbers:
            joined = _JOIN.match(text, at)
            at = joined.end() if joined else at
        number = _NUMBER.match(text, at)
        unit = read_unit(text, number.end()) if number else None
        if number is None or unit is None:
            return None
        numbers.append(_scaled(canonical_number(number), unit.scale))
        units.append(unit.name)
        at = unit.end
    if len(numbers) > 1 and "" in units:
        return None  # a list of numbers is no measure
    return Measure(tuple(numbers), tuple(units)) if numbers else None


def _scaled(number: str, power: int) -> str:
    """Return `2` and a power of 6, from `2 million`, as 2000000."""
    if not power:
        return number
    digits = f"{Decimal(number).scaleb(power):f}"
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def without_unit(text: str) -> str:
    r"""Return a plain answer for a computer algebra system, without the unit after it: `\frac{1}{2}\text{ cup}`."""
    _, text = without_letter(text)
    found = _VALUE.fullmatch(text)
    if found and "percent" not in text and "\x01" not in found["value"]:
        outside = re.sub(r"\x01[^\x01\x02]*\x02", " ", found["unit"])
        words = re.findall(r"[A-Za-z.]+", outside) + re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", found["value"])
        if all(is_unit_word(word, attached=False) for word in words):
            return found["value"]
    return bare(text).replace(" percent", "\\%")
