r"""Tell a unit beside a number from variables, functions and operators.

`18 eggs` is 18 and `18xy` is a product. Letters are a unit where they were set as text, where they are a known short
unit, or where they are long enough for a word that is not a function or an operator. A letter that stands alone is
a variable, unless it was set as text or follows a slash: `5m` is not 5, and `5 km/h` is 5.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from steerdec.grading.spelling import END, TEXT


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


SHORT: Final = _listed("""
    cm mm km dm nm um µm kg mg lb lbs oz ml dl cl cc ft in yd yds mi ha sq cu hr hrs min mins sec secs ms ns us wk wks
    mo mos yr yrs am pm mph kph kmh rpm mpg pt pts qt qts gal gals tsp tbsp usd eur gbp inr hz khz mhz ghz kw kwh mw kb
    mb gb tb cal kcal kj ev kev mev pa kpa psi atm bar mol amp ohm db bps deg rad ct cts pc pcs doz dz ea st nd rd th
""")
_JOINING: Final = _listed("of per a an the in at on by for and to")
# After a number these compute with it, or leave it open.
_NEVER: Final = _listed("""
    or plus minus times over divided mod modulo squared cubed factorial choose halves thirds fourths fifths sixths
    sevenths eighths ninths tenths hundredths thousandths sqrt pi sin cos tan cot csc log ln exp cis gcd lcm infty
    infinity abc abcd wxyz
""")
SCALES: Final = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_PLURALS: Final = {"feet": "foot", "inches": "inch", "people": "person", "children": "child", "mice": "mouse"}
_NAMES: Final = {
    "m": "meter", "metre": "meter", "cm": "centimeter", "centimetre": "centimeter", "mm": "millimeter",
    "millimetre": "millimeter", "km": "kilometer", "kilometre": "kilometer", "g": "gram", "kg": "kilogram",
    "l": "liter", "litre": "liter", "ml": "milliliter", "millilitre": "milliliter", "s": "second", "sec": "second",
    "min": "minute", "h": "hour", "hr": "hour", "yr": "year", "wk": "week", "ft": "foot", "yd": "yard", "mi": "mile",
    "lb": "pound", "oz": "ounce", "deg": "degree", "usd": "dollar", "eur": "euro", "sq": "square", "cu": "cubic",
}  # fmt: skip
# Between two units that share their other words, these make a difference: cm and cm^2, miles and miles per hour.
_DIMENSIONS: Final = frozenset(("/", "square", "cubic", *(f"^{power}" for power in range(-4, 5))))
_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<text>\x01[^\x01\x02]*\x02)|(?P<word>[A-Za-zµ][A-Za-z.]*(?:'[a-z]+)?)"
    r"|(?P<power>\^\s*\{?\s*-?[1-4]\s*\}?(?![0-9]))|(?P<join>/|·|-|\\cdot(?![A-Za-z]))"
    r"|(?P<beside>\(\s*[A-Za-z][A-Za-z ]+\))"
)
_NEXT_NUMBER = re.compile(r"\s*[-+$]?[0-9]")


class Unit(NamedTuple):
    """A unit in the singular and in lower case, where it ends in the text, and the power of ten it begins with."""

    name: str
    end: int
    scale: int = 0


def read_unit(text: str, start: int = 0) -> Unit | None:
    """Return the unit that begins at `start`, named "" where there is none; None if the letters there are not a unit.

    It is read token by token, because one pattern for all of this takes exponential time on some texts.
    """
    words: list[str] = []
    at = end = start
    joined = ""
    while found := _TOKEN.match(text, at):
        kind, token = str(found.lastgroup), found[0]
        if _joins(text, found, token):
            break
        at = found.end()
        if kind == "space":
            continue
        if kind == "join":
            if not words and token != "/":
                break
            joined = token
            continue
        if kind == "power":
            if not words or joined:
                break
            words.append(re.sub(r"[^-0-9^]", "", token))
        else:
            if words == ["degree"] and token in ("C", "F", "K"):
                words, end = [f"degree {token.lower()}"], at
                continue
            place = "first" if not words else "after slash" if joined == "/" else "later"
            more = _words(kind, token, place, attached=found.start() == start)
            if more is None or not _counts(words, more):
                return None
            words += ["/"] * (joined == "/") + more
            if words and words[-1] == "and" and _NEXT_NUMBER.match(text, at):
                words.pop()
        joined, end = "", at
    scale = 0
    while words and _singular(words[0]) in SCALES:
        scale += SCALES[_singular(words.pop(0))]
    if words == ["in"]:
        words = ["inch"]
    name = " ".join("/" if word == "per" else word for word in (_singular(word) for word in words))
    return Unit(name, end, scale)


def same_unit(one: str, other: str) -> bool:
    """Return whether two units may be the same: "" is any, and `apple` and `more apple` are the same."""
    a, b = set(one.split()) - _JOINING, set(other.split()) - _JOINING
    return not one or not other or ((a <= b or b <= a) and not (a ^ b) & _DIMENSIONS)


def is_unit_word(word: str, *, attached: bool) -> bool:
    """Return whether letters that were not set as text are a unit; `attached`: they follow a digit without a space."""
    letters = word.replace(".", "")
    lower = letters.lower()
    if lower in SHORT:
        return True
    if lower in _NEVER or (letters.isupper() and len(letters) > 1):
        return False
    if lower in _JOINING:
        return not attached
    return len(letters) > 3 or (len(letters) == 3 and not attached and re.search("[aeiou]", lower) is not None)


def _words(kind: str, token: str, place: str, *, attached: bool) -> list[str] | None:
    if kind == "word":
        word = token.replace(".", "").lower()
        # After a word, `18 feet as it is`, two small letters are another one; after a slash one letter is a unit.
        more = (place == "later" and len(word) > 1 and token.islower()) or (place == "after slash" and len(word) == 1)
        return [word] if more or is_unit_word(token, attached=attached) else None
    inside = re.sub(r"(?<=[A-Za-z])\.", "", token.strip(f"{TEXT}{END}() "))
    words = re.findall(r"[A-Za-zµ]+|\^|-?[0-9]|/", inside)
    if kind == "beside":
        return [] if all(is_unit_word(word, attached=False) for word in words) else None
    return [word.lower() for word in words]


def _counts(words: list[str], more: list[str]) -> bool:
    """Return whether the words, and what precedes them, leave the number as it is: not `or more`, not `and a half`."""
    if set(more) & _NEVER or (not words and more[:1] == ["and"]):
        return False
    return re.search(r"\b(?:and|a) (?:half|quarter|third)\b", " ".join(words[-2:] + more)) is None


def _joins(text: str, found: re.Match[str], token: str) -> bool:
    """Return whether this is the word between two measures, `2 hours and 30 minutes`."""
    return token.strip(f"{TEXT}{END} ").casefold() == "and" and _NEXT_NUMBER.match(text, found.end()) is not None


def _singular(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    singular = word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
    return _NAMES.get(singular, singular if len(word) > 3 else _NAMES.get(word, word))
