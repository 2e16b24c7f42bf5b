r"""Find `\boxed{...}` in a response."""

from __future__ import annotations

import re

# An escaped brace is text, but not after a line break, `\\}`; `\boxed {x}` and MATH's `\fbox{x}` are boxes too.
_TOKEN = re.compile(r"\\\\(?!(?:boxed|fbox)\s*\{)|\\[{}]|\\(?:boxed|fbox)\s*\{|[{}]")
_SPACES = re.compile(r"\s*")


def last_box(text: str) -> str | None:
    r"""Return the content of the last non-empty box whose braces balance; None if there is none.

    A box that holds only another box is that box: `\boxed{\boxed{70}}` gives "70". An empty box is usually a quote of
    the instruction ("I put it in \boxed{}"), so it does not hide the box before it.

    One pass with a stack: a response that repeats "\boxed{" ten thousand times takes no longer than another.
    """
    content: tuple[int, int] | None = None  # of the last box found
    whole = (-1, -1)  # the same with `\boxed{` and `}`
    open_braces: list[tuple[int, int] | None] = []  # where a box and its content begin; None for a plain brace
    for token in _TOKEN.finditer(text):
        if token[0] == "{":
            open_braces.append(None)
        elif token[0].startswith(("\\b", "\\f")):
            open_braces.append(token.span())
        elif token[0] == "}" and open_braces:
            opening = open_braces.pop()
            if opening is None:
                continue
            first, end = _skip_spaces(text, opening[1]), token.start()
            if first == end:
                continue
            # inner boxes close first, so an outer box replaces the one it contains
            if not (first == whole[0] and _skip_spaces(text, whole[1]) == end):
                content = (opening[1], end)
            whole = (opening[0], token.end())
    return None if content is None else text[slice(*content)].strip()


def _skip_spaces(text: str, start: int) -> int:
    match = _SPACES.match(text, start)
    assert match is not None
    return match.end()
