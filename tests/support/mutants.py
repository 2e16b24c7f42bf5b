"""Which small changes of a module its tests do not notice.

    python -m tests.support.mutants [--lines N,N,...] steerdec.reference tests/kernels/test_reference.py [MORE TESTS]

Changes one thing at a time (a comparison, an operator, a constant, a sign, a condition, a statement), runs the tests
against the changed module in a process of its own, and prints every change that they let pass. Not part of
`make test`: what survived once is in docs/log.md.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIMIT_S = 120  # of processor time; a change can make a loop endless
KILLED, SURVIVED = 0, 1

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitXor: ast.BitOr,
    ast.BitAnd: ast.BitOr,
    ast.RShift: ast.LShift,
    ast.LShift: ast.RShift,
}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Every changed form of one node."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in COMPARISONS:
                other = copy.deepcopy(node)
                other.ops[i] = COMPARISONS[type(op)]()
                yield other
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        other = copy.deepcopy(node)
        other.op = OPERATORS[type(node.op)]()
        yield other
    elif isinstance(node, ast.BoolOp):
        flipped = copy.deepcopy(node)
        flipped.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield flipped
        yield from node.values  # each condition alone
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        if isinstance(node.value, bool):
            yield ast.Constant(not node.value)
        else:
            yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("min", "max"):
        other = copy.deepcopy(node)
        other.func = ast.Name("max" if node.func.id == "min" else "min", ast.Load())
        yield other
    elif isinstance(node, ast.Continue):
        yield ast.Pass()
    elif isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple):
        yield ast.Pass()  # an effect left out; without a name's first value nothing would run
    elif isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
        yield ast.Pass()


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, ast.Module]]:
    """(line, what was changed, the changed module)"""
    count = sum(1 for _ in ast.walk(tree))
    for i in range(count):
        node = next(n for j, n in enumerate(ast.walk(tree)) if j == i)
        for changed in changes(node):
            module = copy.deepcopy(tree)
            target = next(n for j, n in enumerate(ast.walk(module)) if j == i)
            fixed = ast.copy_location(copy.deepcopy(changed), target)
            _Replace(target, fixed).visit(module)
            line = getattr(node, "lineno", 0)
            yield line, f"line {line}: {_shown(node)} -> {_shown(changed)}", ast.fix_missing_locations(module)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)


def _shown(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:70]


def passes(module_name: str, code: ast.Module, tests: list[str]) -> bool:
    """Whether the tests pass with `code` in the module's place; run in a child of this process."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        try:
            module = importlib.import_module(module_name)
            exec(compile(code, str(module.__file__), "exec"), module.__dict__)
            failed = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]) != 0
        except BaseException:
            failed = True
        os._exit(KILLED if failed else SURVIVED)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == SURVIVED


def main() -> int:
    words = sys.argv[1:]
    lines = {int(n) for n in words[1].split(",")} if words[0] == "--lines" else None
    module_name, *tests = words[2:] if lines else words
    spec = importlib.util.find_spec(module_name)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    importlib.import_module(module_name)
    if not passes(module_name, tree, tests):
        sys.exit(f"tests.support.mutants: {' '.join(tests)} fail before anything is changed")
    total, survivors = 0, []
    for line, what, code in mutants(_without_annotations(tree)):
        if lines is not None and line not in lines:
            continue
        total += 1
        if passes(module_name, code, tests):
            survivors.append(what)
            print(f"survived: {what}", flush=True)
    print(f"{module_name}: {total} changes, {len(survivors)} survived", flush=True)
    return 0 if not survivors else 1


def _without_annotations(tree: ast.Module) -> ast.Module:
    """They are not evaluated, so there is nothing to notice."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant("")
    return tree


if __name__ == "__main__":
    sys.exit(main())
