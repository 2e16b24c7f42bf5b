"""The embedded problems: one-step word problems for a 135-million-parameter model, made by hash, not downloaded.

A problem set can only show an effect of decoding where the model is sometimes right and sometimes wrong. SmolLM2-135M
never solves AIME and rarely GSM8K. So the operands here come from ranges on which it is right about half the time, and
of the problems those ranges allow, the ones it answered always, never or once in six trials are left out.

Every choice is a SHA-256 digest of what is chosen for, so the sets are the same on every Python, NumPy and platform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

SIZE = 64  # problems of `embedded`; `embedded-calibration` has the rest

ADD_OPERANDS = range(5, 21)
TIMES_SMALLER, TIMES_LARGEST = range(2, 10), 15
IN_EXAMPLES = {("add", 7, 12), ("times", 3, 6), ("times", 4, 5)}  # operands that the few-shot prompt works out

# How often SmolLM2-135M-Instruct (4-bit weights, run in bfloat16) was right on each candidate, in their order: six
# samples at temperature 0.6 with the few-shot prompt; 41% in all. Drawn from the baseline alone, with other random
# numbers than any run has, so the choice favours no arm. Eight fresh samples of each of the 64 that were kept: 57%
# right, 44 problems between 20% and 80%, standard deviation of the problems' true rates about 0.22.
RIGHT_OF_SIX = (
    "13316010421221221603052200110352121015044103666336122440161333230410236505340300534541013430614506004005413033"
    "54222002324430410164040532662504332126630005166205233114130364040643120513112200143120303545430056034130433030"
)
KEPT = "2345"

NAMES = (
    "Ann", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo", "Maria", "Nina",
    "Oscar", "Rosa", "Sam", "Tina",
)  # fmt: skip
ITEMS = (
    "apples", "books", "buttons", "candles", "cards", "coins", "cookies", "crayons", "eggs", "flowers", "keys",
    "lemons", "marbles", "muffins", "pencils", "shells", "spoons", "stamps", "stickers", "tickets",
)  # fmt: skip
BOXES = ("bags", "baskets", "boxes", "cases", "crates", "jars", "packs", "shelves", "tins", "trays")

WORDINGS = {
    "add": (
        "{name} has {a} {item}. {other} gives {name} {b} more {item}. How many {item} does {name} have now?",
        "{name} finds {a} {item} in the morning and {b} {item} in the evening. How many {item} does {name} find?",
        "{name} has {a} {item} and {other} has {b} {item}. How many {item} do they have together?",
    ),
    "times": (
        "There are {a} {box} with {b} {item} in each. How many {item} are there in total?",
        "{name} fills {a} {box} with {b} {item} each. How many {item} does {name} use?",
        "{name} buys {a} {box}. Each holds {b} {item}. How many {item} does {name} buy?",
    ),
}


def _digest(*parts: object) -> int:
    """A 256-bit number that depends on the parts and on nothing else."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest(), "big")


def _pick(options: Sequence[str], *parts: object) -> str:
    return options[_digest(*parts) % len(options)]


def _problem(operation: str, low: int, high: int) -> dict[str, str]:
    key = f"{operation}-{low}-{high}"
    # the larger operand first as often as second; a box count above the range would read oddly
    swap = _digest(key, "order") % 2 == 1 and (operation == "add" or high in TIMES_SMALLER)
    a, b = (high, low) if swap else (low, high)
    name = _pick(NAMES, key, "name")
    text = _pick(WORDINGS[operation], key, "wording").format(
        a=a,
        b=b,
        name=name,
        other=_pick([other for other in NAMES if other != name], key, "other"),
        item=_pick(ITEMS, key, "item"),
        box=_pick(BOXES, key, "box"),
    )
    answer = a + b if operation == "add" else a * b
    return {"id": f"embedded-{key}", "problem": text, "answer": str(answer), "kind": "number"}


def embedded() -> list[dict[str, str]]:
    """`id`, `problem`, `answer`, `kind` of the problems to test on."""
    return _kept()[:SIZE]


def embedded_calibration() -> list[dict[str, str]]:
    """As :func:`embedded`, to calibrate on: no operands in common with it."""
    return _kept()[SIZE:]


TEMPERATURE = 0.6  # at which they were chosen; the arm set `quick` samples at it too
SETS = {"embedded": embedded, "embedded-calibration": embedded_calibration}


def _kept() -> list[dict[str, str]]:
    return [
        _problem(*operands)
        for operands, right in zip(candidates(), RIGHT_OF_SIX, strict=True)
        if right in KEPT and operands not in IN_EXAMPLES
    ]


def candidates() -> list[tuple[str, int, int]]:
    """Operation and operands of every problem the ranges allow, each unordered pair once, in an order fixed by hash."""

    pairs: list[tuple[str, int, int]] = [
        *(("add", low, high) for low in ADD_OPERANDS for high in ADD_OPERANDS if low <= high),
        *(("times", low, high) for low in TIMES_SMALLER for high in range(low, TIMES_LARGEST + 1)),
    ]
    return sorted(pairs, key=lambda pair: _digest(*pair, "rank"))
