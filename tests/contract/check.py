"""One vLLM against the table."""

from __future__ import annotations

from tests.contract.sources import MissingError, Sources
from tests.contract.table import TABLE, Used


def broken(sources: Sources) -> list[str]:
    """What of the table this vLLM does not keep, one line each; empty if it keeps all."""
    return [line for used in TABLE for line in violations(sources, used)]


def violations(sources: Sources, used: Used) -> list[str]:
    try:
        found = sources.find(used.module, used.name)
        told = []
        if used.parameters:
            there = tuple(sources.parameters(found))
            if there[: len(used.parameters)] != used.parameters:
                told.append(f"takes {there}, not {used.parameters}")
        if used.attributes:
            missing = set(used.attributes) - sources.attributes(found)
            told += [f"has no {name}" for name in sorted(missing)]
    except MissingError as e:
        return [f"{used}: {e} (needed by {', '.join(used.by)})"]
    told += _out_of_place(found.text, used)
    return [f"{used}: {line} (needed by {', '.join(used.by)})" for line in told]


def _out_of_place(source: str, used: Used) -> list[str]:
    joined, at = " ".join(source.split()), 0
    told = [f"{text!r} is not there" for text in (*used.texts, *used.order) if text not in joined]
    if told:
        return told
    for text in used.order:
        if (place := joined.find(text, at)) < 0:
            return [f"{text!r} does not come after what should stand before it"]
        at = place
    return []
