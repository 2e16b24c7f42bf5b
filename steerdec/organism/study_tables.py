"""The study's figures as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerdec.analysis.lenses import names
from steerdec.organism.grpo import ARMS


def tables(found: Mapping[str, Any]) -> str:
    """Return one section per part that is there."""
    parts = ["# What the organism shows\n"]
    if "lenses" in found:
        parts += [_lenses(found["lenses"]), _attempts(found["attempts"])]
    if "causal" in found:
        parts.append(_causal(found["causal"]))
    if "grpo" in found:
        parts.append(_grpo(found["grpo"]))
    return "\n".join(parts)


def _interval(value: Mapping[str, Any], scale: float = 1.0, digits: int = 2, sign: str = "") -> str:
    if value["mean"] != value["mean"]:
        return "-"
    mean, low, high = (f"{scale * value[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _p(p: float) -> str:
    return "-" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _lenses(found: Mapping[str, Any]) -> str:
    tokens = ", ".join(f"{n} {kind}" for kind, n in found["tokens"].items())
    lines = [
        "## Lenses against the true decisions\n",
        f"{found['traces']} traces, tokens: {tokens}; {found['live_decisions']} decisions are live.\n",
        "| lens | AUROC of decisions | without style tokens | of live decisions | style against determined | precision "
        "| recall | p, shift | p, shuffle |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, lens in found["lenses"].items():
        m = lens["measures"]
        keys = ("auroc", "auroc_without_style", "auroc_live", "auroc_of_style", "precision", "recall")
        cells = [names.lens(name).short, *(_interval(m[key]) for key in keys)]
        cells += [_p(lens[null]["p_holm"]) for null in ("shift", "shuffle")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _attempts(found: Mapping[str, Any]) -> str:
    lines = [
        f"{found['on_the_way']} of {found['attempts']} attempts took the right first move. AUROC of these:\n",
        "| lens of sentences | AUROC |",
        "|---|---|",
    ]
    lines += [f"| {names.lens(name).short} | {_interval(value)} |" for name, value in found["auroc"].items()]
    return "\n".join([*lines, ""])


def _causal(found: Mapping[str, Any]) -> str:
    lines = ["## The causal test\n"]
    for temperature, run in found.items():
        base = run["arms"]["B"]
        low, high = base["avg_at_k_ci95"]
        lines += [
            f"### Base temperature {temperature}\n",
            f"{base['n_problems']} problems, {base['k']} samples, forks above {run['threshold_nats']:.3f} nats; B "
            f"{100 * base['avg_at_k']:.1f}% [{100 * low:.1f}, {100 * high:.1f}]; instrument {run['instrument']}.\n",
            "| arm | avg@k | difference to B, points | pass@k | fork rate |",
            "|---|---|---|---|---|",
        ]
        differences = {
            c["arm"]: c for c in run["comparisons"] if c["baseline"] == "B" and c["scope"] == "problems like these"
        }
        for name, arm in run["arms"].items():
            rate = "-" if arm["fork_rate"] is None else f"{100 * arm['fork_rate']:.1f}%"
            lines.append(
                f"| {name} | {100 * arm['avg_at_k']:.1f}% | {_difference(differences.get(name))} | "
                f"{100 * arm['pass_at_k']:.1f}% | {rate} |"
            )
        lines += ["", *(f"- {c['statement']} **{c['verdict']}**: {c['reason']}" for c in run["claims"]), ""]
    return "\n".join(lines)


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None or found["diff"] is None:
        return "-"
    if found["ci95"] is None:
        return f"{100 * found['diff']:+.1f}"
    low, high = found["ci95"]
    return f"{100 * found['diff']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _grpo(found: Mapping[str, Any]) -> str:
    arms = found["arms"]
    lines = [
        "## Training with GRPO on some of the tokens\n",
        f"{len(found['seeds'])} seeds; score before training {100 * found['score_before']:.1f}%. Intervals: "
        "Student's t over seeds.\n",
        "| | " + " | ".join(ARMS) + " |",
        "|---|" + "---|" * len(ARMS),
    ]
    rows: list[tuple[str, str, float, int, str]] = [
        ("score after, %", "score", 100, 1, ""),
        ("gain, points", "gain", 100, 1, "+"),
        ("response length, tokens", "mean_tokens", 1, 1, ""),
        ("overlap of fork positions with the base, %", "overlap", 100, 1, ""),
        ("forks that are true decisions, %", "forks_that_are_decisions", 100, 1, ""),
        ("entropy at the base's forks, before, nats", "entropy_forks_before", 1, 3, ""),
        ("change there", "entropy_forks_change", 1, 3, "+"),
        ("entropy at others, before, nats", "entropy_others_before", 1, 4, ""),
        ("change there", "entropy_others_change", 1, 4, "+"),
        ("change at true decisions, nats", "entropy_decision_change", 1, 3, "+"),
        ("change at style words, nats", "entropy_style_change", 1, 3, "+"),
        ("change at determined tokens, nats", "entropy_determined_change", 1, 4, "+"),
        ("parameters changed at all, %", "parameters_above_0", 100, 2, ""),
        ("by more than 1e-5, %", "parameters_above_1e-05", 100, 1, ""),
        ("by more than 1e-4, %", "parameters_above_0.0001", 100, 1, ""),
        ("relative change, %", "parameters_relative", 100, 2, ""),
    ]
    for title, name, scale, digits, sign in rows:
        known = [arms[arm].get(name) for arm in ARMS]  # no entropy at a kind of token that never occurred
        cells = ["-" if value is None else _interval(value, scale, digits, sign) for value in known]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", "Scores paired by seed, points:\n", "| | difference |", "|---|---|"]
    lines += [f"| {pair} | {_interval(value, 100, 1, '+')} |" for pair, value in found["pairs"].items()]
    return "\n".join([*lines, ""])
