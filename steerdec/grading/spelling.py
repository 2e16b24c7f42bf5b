r"""Write an answer plainly: the same characters and commands for what people and models spell in many ways.

`\boldsymbol{18}`, `€18`, `“18”`, `18。` and `18` say the same; so do `70^\circ`, `70^o` and `70˚`, or `2½`, `2 1/2` and
`2\frac{1}{2}`. Nothing is computed here, and no unit is dropped: :mod:`steerdec.grading.measures` reads units.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

# Full-width forms are their ASCII characters, 0xFEE0 further on; the others are a full stop, a space, and dashes.
CHARACTERS: Final[dict[int, str]] = {
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
    **{0x3002: ".", 0x3000: " "},
    **dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0xFE63), "-"),
}
TEXT, END = "\x01", "\x02"  # around what was set as text

_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_VULGAR = re.compile(r"[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_ROOT = re.compile(r"√\s*(?:([0-9]+|[A-Za-z])|\(([^()]*)\)|(?=\{))|(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(pi(?![A-Za-z])|(?:ln|log|sin|cos|tan)(?= *[0-9(\\]| [a-z](?![A-Za-z])))")
_REPEATING = re.compile(r"([0-9]+)\.([0-9]*)\\(?:overline|bar|dot)\s*\{([0-9]+)\}")
_SYMBOLS: Final = {
    "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "÷": r"\div ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "⁄": "/", "∕": "/", "℃": "°C", "℉": "°F",
}  # fmt: skip
_SYMBOL = re.compile("|".join(_SYMBOLS))
_QUOTES: Final = (("“", "”"), ("‘", "’"), ('"', '"'), ("'", "'"), ("`", "`"), ("**", "**"), ("*", "*"))

_STYLE = re.compile(
    r"\\(?:boldsymbol|bm|pmb|underline|ensuremath)(?=\s*\{)"
    r"|\\(?:text)?color\s*(?:\[[^\[\]]*\])?\s*\{[^{}]*\}"
    r"|\\(?:displaystyle|textstyle|(?:foot|script)?(?:small|size)|normalsize|tiny|large|Large|LARGE|huge|Huge)(?![A-Za-z])"
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|textnormal|emph|mathrm|mathbf|mathit|mathsf|mathtt|mbox|hbox"
    r"|operatorname)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_EMPTY = re.compile(
    r"\\[hv](?:space|skip)\*?\s*\{[^{}]*\}|\\[hv]?phantom\s*\{[^{}]*\}|(?<![A-Za-z])\{\s*\}(?!\s*\^)|\\\\\s*$"
)
_LAYOUT = re.compile(r"\\(?:left|right|quad|qquad|bf|rm|it)(?![A-Za-z])|(?<!\\)\\!|[~\u00a0\u2009\u202f]")
_SPACE = re.compile(r"(?<!\\)\\[,;: ]")
_CIRCLE = r"(?:\\circ|\\degrees?|\\(?:text|mathrm)\s*\{\s*[oO]\s*\}|[oO](?![A-Za-z])|[∘°º˚])"
_DEGREE = re.compile(
    rf"(?:\{{\s*\}})?\s*\^\s*(?:\{{\s*{_CIRCLE}\s*\}}|{_CIRCLE})"
    r"|(?<=[0-9])\s*\\(?:circ|deg)(?=\s*(?:[CF](?![A-Za-z]))?[\s.,;$]*$)"
    r"|\\degrees?(?![A-Za-z])|\\textdegree(?![A-Za-z])|[°º˚]|(?<=[0-9])∘"
)
_PERCENT = re.compile(r"\\?%")
_MONEY_BEFORE = re.compile(
    r"(?:[€£¥₹₩]|\\(?:pounds|euro)(?![A-Za-z])|\b(?:USD|US\\?\$|EUR|GBP|INR|Rs\.?))\s*(?=-?[0-9.])"
)
_MONEY_AFTER: Final = {"¢": "cent", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee", "₩": "won"}
_ORDINAL = re.compile(r"(?<=[0-9])\s*\^\s*(?:\{\s*\x01?\s*(?:st|nd|rd|th)\s*\x02?\s*\}|\x01\s*(?:st|nd|rd|th)\s*\x02)")
_AROUND_NUMBER = re.compile(r"\x01(?=[^\x02]*(?<!\^)(?<!\^-)(?<!\^\{)(?<!\^\{-)[0-9])([^\x01\x02]*)\x02")
# `1 1/2` and `1 and 1/2`, but not the sum, the power, or the list that `1`, `1/2` may be part of.
_MIXED = re.compile(r"(?<![0-9.,/^_{])([0-9]+) (?:and )?([1-9][0-9]*) ?/ ?([1-9][0-9]*)(?![0-9/.])")
_MIXED_BESIDE = re.compile(r"(?<![0-9.,/^_{])([0-9]+) and (?=\\[dt]?frac)")
_TIMES_TEN = re.compile(r"(?<=[0-9])\s*[xX*]\s*(?=10\s*\^)")
_LETTER = re.compile(r"^\(?(?P<letter>[A-J])[).:](?=\s|[-+$\\(0-9])\s*(?P<rest>.*[0-9].*)$")
_LETTER_AFTER = re.compile(r"^(?P<rest>.*[0-9].*?)\s*\((?P<letter>[A-J])\)$")
_LABEL = re.compile(
    r"^(?P<label>(?:m? ?\\angle ?)?[A-Za-z' \x01\x02]{0,60}[A-Za-z]{2}[ \x01\x02]{0,4})"
    r"(?:[:=]|(?<=[ \x01\x02])is\b)\s*\x02?\s*(?P<rest>[-+]?[\\$0-9.(].*)$"
)
_GOES_ON = re.compile(
    r"[0-9}][\s\x01\x02]*(?:[A-Za-z]+\s+)*(?:and|or)\b(?![\s\x01\x02]*(?:[-0-9\\(]|[a-z](?![A-Za-z ])))"
)
_SHORT_WORDS: Final = frozenset(("true", "false", "yes", "no", "odd", "none"))


def plain(latex: str) -> str:
    r"""Return the answer without layout: no `\left`, thin spaces, final period, or wrapper around the whole of it.

    What was set as text inside stands between the characters 1 and 2; :func:`bare` removes them.
    """
    text = _in_latex(latex.translate(CHARACTERS))
    text = re.sub(r"\{([,:;])\}", r"\1", text)
    text = _unquoted(text.strip())
    text = _EMPTY.sub(" ", _STYLE.sub("", text))
    text = _LAYOUT.sub(lambda found: "" if found[0].startswith("\\") else " ", text)
    text = _SPACE.sub(" ", text)
    text = _DEGREE.sub(f" {TEXT}degree{END} ", text)
    while (unwrapped := _WRAPPER.sub(lambda found: f"{TEXT}{_unmarked(found[1])}{END}", text)) != text:
        text = unwrapped
    text = re.sub(r"\\mu\s*\x01\s*", f"{TEXT}µ", text)
    text = re.sub(r"(?<=[0-9 ])(?:\\Omega|Ω)(?=\s*$)", f" {TEXT}ohm{END}", text)
    text = _PERCENT.sub(f" {TEXT}percent{END} ", text)
    text = _MONEY_BEFORE.sub("", re.sub(r"\x01\s*(?=\\?[$€£¥₹₩])(\\?.)\s*\x02", r"\1", text))
    for sign, name in _MONEY_AFTER.items():
        text = text.replace(sign, f" {TEXT}{name}{END} ")
    text = _ORDINAL.sub("", text).replace(TEXT + END, "")
    text = " ".join(text.split())
    # A wrapper around a number, `\textbf{18}`, `\text{18 eggs}` or `{18}`, says nothing about it.
    text = re.sub(r"^\{([-+0-9., ]*[0-9])\}", r"\1", _AROUND_NUMBER.sub(r"\1", text))
    text = re.sub(r"[.,;]+\s*\x02$", END, text.strip())
    text = _TIMES_TEN.sub(r"\\times ", _MIXED_BESIDE.sub(r"\1", _MIXED.sub(_mixed, text)))
    return _unquoted(text.rstrip(".,;").strip())


def bare(text: str) -> str:
    """Return a :func:`plain` text without the marks of what was set as text."""
    return " ".join(text.replace(TEXT, " ").replace(END, " ").split())


def is_words(text: str) -> bool:
    r"""Return whether a :func:`plain` text is words and nothing else: `\text{even}`, `Thursday`.

    Letters that were not set as text are words if there are four of them together; `abc` may be a product.
    """
    if re.fullmatch(r"\x01\s*[^\W\d_]{2}[^\d\x01\x02]*\x02", text) is not None or text.casefold() in _SHORT_WORDS:
        return True
    return re.fullmatch(r"[A-Za-z]+(?: [A-Za-z]+)*", text) is not None and re.search("[A-Za-z]{4}", text) is not None


def leaves_open(text: str) -> bool:
    """Return whether words after a number in a :func:`plain` text go on from it: `2 and a half`, `18 or more`."""
    return _GOES_ON.search(text) is not None


def without_letter(text: str) -> tuple[str, str]:
    """Return (contest letter or "", the answer beside it): `(C) 12` and `12 (C)` give ("C", "12")."""
    unmarked = re.sub(r"[\x01\x02]", "", text)
    for pattern in (_LETTER, _LETTER_AFTER):
        if found := pattern.match(unmarked):
            return found["letter"], found["rest"].strip()
    return "", text


def without_label(text: str) -> tuple[str, str]:
    r"""Return (label or "", the rest): `Total: 18` and `\angle ABC = 18` have one; `x = 18` is an equation."""
    if found := _LABEL.match(text):
        return bare(found["label"]), found["rest"].strip()
    return "", text


def _in_latex(text: str) -> str:
    """Return the text with a LaTeX command for what Unicode has a character for."""
    text = _SUPERSCRIPT.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _VULGAR.sub(lambda found: _vulgar(found[0]), text)
    text = _ROOT.sub(
        lambda found: f"\\sqrt{{{found[1] or found[2] or found[3]}}}" if found.lastindex else "\\sqrt", text
    )
    text = _FUNCTION.sub(r"\\\1", text)
    text = _REPEATING.sub(lambda found: _repeating(*found.groups()), text)
    return _SYMBOL.sub(lambda found: _SYMBOLS[found[0]], text)


def _vulgar(character: str) -> str:
    above, below = unicodedata.normalize("NFKC", character).split("\u2044")
    return f"\\frac{{{above}}}{{{below}}}"


def _repeating(whole: str, before: str, again: str) -> str:
    above = int(whole + before + again) - int(whole + before)
    return f"\\frac{{{above}}}{{{10 ** len(before) * (10 ** len(again) - 1)}}}"


def _mixed(found: re.Match[str]) -> str:
    whole, above, below = found.groups()
    return f"{whole}\\frac{{{above}}}{{{below}}}" if int(above) < int(below) else found[0]


def _unmarked(text: str) -> str:
    return text.replace(TEXT, "").replace(END, "")


def _unquoted(text: str) -> str:
    """Return the text without quotes or Markdown stars around the whole of it."""
    for opening, closing in _QUOTES:
        inside = text[len(opening) : len(text) - len(closing)]
        if len(inside) > 0 and text.startswith(opening) and text.endswith(closing) and closing not in inside:
            return inside.strip()
    return text
