"""Write the tables of docs/ from the code: `python docs/build_tables.py`.

A table is between `<!-- table NAME -->` and `<!-- end -->`; everything else is written by hand. tests/docs/test_docs.py
fails if a table is not what this program would write.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from steerdec.benchmarks.design import arm_sets, power
from steerdec.benchmarks.operations import sizing, step_share
from steerdec.cli import main as cli
from steerdec.phantom import folder, kinds
from steerdec.policies import registry, schema
from steerdec.policies.split.fields import Split
from steerdec.records.arms import Arm
from steerdec.server import metrics
from steerdec.steering import params

DOCS = Path(__file__).parent
_TABLE = re.compile(r"(<!-- table (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return `text` with every table generated again. Raises KeyError for an unknown table."""
    return _TABLE.sub(lambda found: found[1] + "\n" + table(found["name"]) + "\n" + found[3], text)


def table(name: str) -> str:
    kind, _, rest = name.partition(" ")
    builders = {
        "fields": _fields,
        "options": _options,
        "arms": _arms,
        "claims": _claims,
        "power": _power,
        "metrics": _metrics,
        "sizing": _sizing,
        "share": _step_share,
        "phantoms": _phantoms,
    }
    return builders[kind](rest)


def _markdown(head: list[str], rows: Iterator[list[str]] | list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# The steering object -----------------------------------------------------------------------------


def _fields(policy: str) -> str:
    """List the fields of one policy that differ from those that all share; "shared" lists those."""
    shared = policy == "shared"
    model = Split if shared else registry.POLICIES[policy]
    common, required = params.Steering.model_fields, model.model_json_schema().get("required", [])
    rows = []
    if shared:
        every = ", ".join(f"`{json.dumps(name)}`" for name in registry.POLICIES)
        rows.append(["`policy`", every, '`"split"`', "What is done at forks; each adds fields of its own, below."])
    for name, field in model.model_fields.items():
        same = name in common and field.default == common[name].default
        if name != "policy" and same == shared:
            default = "required" if name in required else "" if field.default is None else _code(field.default)
            rows.append([f"`{name}`", _allowed(model, name), default, str(field.description)])
    return _markdown(["field", "type and range", "default", "meaning"], rows)


def _allowed(model: type[params.Steering], name: str) -> str:
    """Describe the type and range of a field, from its JSON schema."""
    field: dict[str, Any] = schema.policy_schema(model)["properties"][name]
    return ", or ".join(_in_words(kind) for kind in _kinds(field))


def _kinds(field: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the alternatives of a field's value other than null."""
    inner = [kind for one in field.get("anyOf", []) for kind in _kinds(one)]
    return inner or [one for one in [field] if one.get("type") != "null"]


def _in_words(one: dict[str, Any]) -> str:
    if "const" in one:
        return _code(one["const"])
    if "enum" in one:
        return ", ".join(_code(value) for value in one["enum"])
    low, high = one.get("minimum"), one.get("maximum")
    above, below = one.get("exclusiveMinimum"), one.get("exclusiveMaximum")
    kind = {"number": "number", "integer": "whole number"}[one["type"]]
    if below == 2**31:
        return f"{kind}, {low:g} to 2^31 - 1"
    lower = f"{low:g}" if low is not None else f"above {above:g}"
    if high is not None:
        return f"{kind}, {lower} to {high:g}"
    if below is not None:
        return f"{kind}, {lower}{'' if low is None else ' or more'}, below {below:g}"
    return f"{kind}, {lower} or more"


def _code(value: object) -> str:
    return f"`{json.dumps(value)}`"


# Phantoms ----------------------------------------------------------------------------------------


@functools.cache
def _phantoms(_: str) -> str:
    """List the kinds, the exact scores of the arms in claims, and the correct verdicts."""
    shown = ("B", "F-up", "F-down", "N-up-m", "N-down", "F-down-m")
    rows = []
    for kind in kinds.KINDS.values():
        known = folder.truth_as_json(kind, folder.truth_of(kind))
        scores = [f"{100 * known['arms'][arm]['avg_at_k']:.1f}" for arm in shown]
        verdicts = ", ".join(claim["verdict"] for claim in known["claims"].values())
        rows.append([f"`{kind.name}`", *scores, verdicts])
    return _markdown(["kind", *shown, "claims"], rows)


# The command line --------------------------------------------------------------------------------


@functools.cache
def command_line() -> Any:
    """Return the whole command, as `steerdec` runs it: `main` adds the benchmark commands at each call."""
    given = mock.patch.object(sys, "argv", ["steerdec", "--version"])
    with given, contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.main()
    return typer.main.get_command(cli.app)


def commands(command: Any | None = None, path: str = "steerdec") -> Iterator[tuple[str, Any]]:
    """Yield every command that is not only a group, by its full name."""
    command = command or command_line()
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, inner in command.commands.items():
        yield from commands(inner, f"{path} {name}")


def _options(path: str) -> str:
    command = dict(commands())[path]
    rows = []
    for option in command.params:
        if option.param_type_name == "argument":
            name = _metavar(option)
        else:
            name = "/".join([*option.opts, *option.secondary_opts]) + ("" if option.is_flag else f" {_metavar(option)}")
        rows.append([f"`{name}`", _default(option), (option.help or "").strip()])
    return _markdown(["argument or option", "default", "meaning"], rows)


def _metavar(option: Any) -> str:
    return str(option.metavar or option.name.upper())


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return f"`{option.show_default}`"
    return "" if option.default is None or option.is_flag else f"`{option.default}`"


# The benchmark -----------------------------------------------------------------------------------


def _arms(name: str) -> str:
    def asked(arm: Arm) -> str:
        if arm.branch is not None:
            return f"`{json.dumps({'branch': arm.branch.model_dump()})}`"
        return "" if arm.steering is None else f"`{json.dumps(arm.steering)}`"

    rows = [[f"`{arm.name}`", arm.role, arm.about, asked(arm)] for arm in arm_sets.load_arm_set(name).arms]
    return _markdown(["arm", "role", "what it does", "steering"], rows)


def _claims(name: str) -> str:
    sign = {"higher": ">", "lower": "<", "greater": ">", "less": "<"}
    rows = [
        [f"`{c.id}`", c.statement, f"{c.arm} {sign[c.direction]} {c.baseline}"]
        for c in arm_sets.load_arm_set(name).claims
    ]
    return _markdown(["id", "statement", "claim"], rows)


def _power(_: str) -> str:
    rows = []
    for n in (30, 60, 200):
        for k in (16, 32, 64):
            plan = power.plan(n, k, arms=2)
            seen = [f"{100 * mde:.1f}" for mde in (plan.mde_these_problems, plan.mde_problems_like_these)]
            rows.append([str(n), str(k), *seen])
    return _markdown(["problems", "samples each", "these problems", "problems like these"], rows)


def _metrics(_: str) -> str:
    rows = []
    for collector in (metrics.REQUESTS, metrics.TOKENS, metrics.FORKS, metrics.ENTROPY):
        (family,) = collector.collect()
        counter = family.type == "counter"
        rows.append([f"`{family.name}{'_total' if counter else ''}`", family.type, family.documentation])
    return _markdown(["name", "kind", "meaning"], rows)


def _sizing(_: str) -> str:
    return _markdown(sizing.HEAD, sizing.rows(gpus=(1, 8, 64), samples=(16, 48)))


def _step_share(_: str) -> str:
    return _markdown([*step_share.HEAD], step_share.table(step_share.Assumptions(sizing.Gpu())))


if __name__ == "__main__":
    for page in sorted(DOCS.glob("*.md")):
        old = page.read_text("utf-8")
        if (new := filled(old)) != old:
            page.write_text(new, "utf-8")
            print(page)
