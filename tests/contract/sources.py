"""vLLM as source text: where a name is defined, what it takes, what it holds. Nothing is imported, so that versions
can be read that do not install on this machine."""

from __future__ import annotations

import ast
import importlib.util
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | Function | ast.Assign | ast.AnnAssign | ast.Module


class MissingError(Exception):
    """What was looked for is not there; the message says where."""


@dataclass(frozen=True)
class Found:
    module: str
    node: Definition
    text: str  # its source


class Sources:
    """Source files by path, such as `vllm/config/__init__.py`."""

    def __init__(self, read: Callable[[str], str | None]) -> None:
        """`read`: the text of a path, None where there is no such file."""
        self._read = cache(read)
        self._parsed = cache(ast.parse)

    @classmethod
    def installed(cls) -> Sources:
        spec = importlib.util.find_spec("vllm")
        if spec is None or spec.origin is None:
            raise MissingError("vllm is not installed")
        root = Path(spec.origin).parent.parent
        return cls(lambda path: (root / path).read_text("utf-8") if (root / path).is_file() else None)

    @classmethod
    def of_wheel(cls, wheel: Path) -> Sources:
        archive = zipfile.ZipFile(wheel)
        names = set(archive.namelist())
        return cls(lambda path: archive.read(path).decode() if path in names else None)

    def module(self, name: str) -> Found:
        stem = name.replace(".", "/")
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            text = self._read(path)
            if text is not None:
                return Found(name, self._parsed(text), text)
        raise MissingError(f"no module {name}")

    def find(self, module: str, name: str) -> Found:
        """The definition of `name` ("f", "Class", "Class.method", "" for the module), through re-exports and bases.

        Raises:
            MissingError: there is none.
        """
        first, _, rest = name.partition(".")
        if not first:
            return self.module(module)
        found = self._top_level(module, first)
        if not rest:
            return found
        for owner in self._with_bases(found):
            for node in _body(owner.node):
                if rest in _names(node):
                    return self._found(owner.module, node)
        raise MissingError(f"{module}.{first} has no {rest}")

    def _top_level(self, module: str, name: str) -> Found:
        file = self.module(module)
        for node in _body(file.node):
            if name in _names(node):
                return self._found(module, node)
        for node in ast.walk(file.node):  # imported, perhaps under `if TYPE_CHECKING` or on demand
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return self._top_level(_absolute(file, node), alias.name)
            if isinstance(node, ast.Dict):  # vllm/__init__.py: "SamplingParams": ".sampling_params:SamplingParams"
                lazy = {k.value: v.value for k, v in _constants(node)}
                if isinstance(target := lazy.get(name), str) and target.startswith(".") and ":" in target:
                    return self._top_level(module + target.partition(":")[0], target.partition(":")[2])
        raise MissingError(f"{module} has no {name}")

    def _found(self, module: str, node: Definition) -> Found:
        return Found(module, node, ast.get_source_segment(self.module(module).text, node) or "")

    def _with_bases(self, found: Found) -> Iterator[Found]:
        """A class and those it inherits from in vLLM."""
        yield found
        for base in getattr(found.node, "bases", []):
            name = ast.unparse(base)
            if name.isidentifier():
                try:
                    yield from self._with_bases(self._top_level(found.module, name))
                except MissingError:  # of another package
                    continue

    def parameters(self, found: Found) -> list[str]:
        """Of a function, in order, without * and **."""
        if not isinstance(found.node, Function):
            raise MissingError(f"{found.module}: {found.text[:60]!r} is no function")
        arguments = found.node.args
        return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]

    def attributes(self, found: Found) -> set[str]:
        """What instances of a class have: fields, methods, and what any method assigns to self."""
        names: set[str] = set()
        for owner in self._with_bases(found):
            for node in _body(owner.node):
                names |= _names(node)
            for node in ast.walk(owner.node):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    names |= {node.attr} if ast.unparse(node.value) == "self" else set()
        return names


def _body(node: ast.AST) -> Iterator[Definition]:
    """The definitions directly in a module or a class, those under `if` and `try` included."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | Function | ast.Assign | ast.AnnAssign):
            yield child
        elif isinstance(child, ast.If | ast.Try | ast.ExceptHandler):
            yield from _body(child)


def _names(node: Definition) -> set[str]:
    """What a definition defines."""
    if isinstance(node, ast.ClassDef | Function):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _absolute(file: Found, node: ast.ImportFrom) -> str:
    """The module an import names, seen from `file`."""
    return importlib.util.resolve_name("." * node.level + (node.module or ""), file.module)


def _constants(node: ast.Dict) -> Iterator[tuple[ast.Constant, ast.Constant]]:
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
            yield key, value
