"""Hooks of mkdocs.yml: the pages and drawings of the site that are not files in docs/.

- README.md, CONTRIBUTING.md and CHANGELOG.md become pages, and so does the notebook, with its outputs.
- Every room of steerdec gets a page of the API reference, made from its docstrings.
- ```mermaid blocks become SVG while the site is built, so that a page needs no script and no network, and a mistake in
  a diagram fails the build.
"""

from __future__ import annotations

import json
import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
FROM_THE_TOP = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
NOTEBOOKS = {"notebook.md": "docs/notebooks/steering.ipynb"}
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_DIAGRAM = re.compile(r"^```mermaid\n(?P<source>.*?)^```$", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API reference into the navigation."""
    (section,) = [item for item in config.nav or [] if "API reference" in item]
    section["API reference"] = [{title: page} for page, title in rooms()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for page, source in FROM_THE_TOP.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for page, source in NOTEBOOKS.items():
        files.append(File.generated(config, page, content=_notebook(ROOT / source)))
    for page, room in rooms():
        files.append(File.generated(config, page, content=_reference(room)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw the diagrams, and point links at the site's own pages; a link to a source file keeps its text only."""
    sources = FROM_THE_TOP | NOTEBOOKS
    folder = posixpath.dirname(sources.get(page.file.src_uri, "docs/"))

    def link(match: re.Match[str]) -> str:
        path, hash_, anchor = match["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, path))
        if target in sources.values():
            (inside,) = [page for page, source in sources.items() if source == target]
        elif target.startswith("docs/") and not target.endswith(".py"):
            inside = target.removeprefix("docs/")
            if inside == "example-report/report.md":  # the same report stands beside it as HTML
                inside = "example-report/report.html"
        else:
            return match["text"]
        return f"[{match['text']}]({inside}{hash_}{anchor})"

    if page.file.src_uri.startswith("reference/"):
        return markdown
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    markdown = "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)
    return _DIAGRAM.sub(lambda match: _drawn(match["source"]), markdown)


def rooms() -> list[tuple[str, str]]:
    """List (page, module) of the package itself, of each module at its top, and of each folder that holds modules."""
    names = ["steerdec", *(f"steerdec.{path.stem}" for path in _modules(ROOT / "steerdec"))]
    names += [name for name in _folders(ROOT / "steerdec", "steerdec") if name != "steerdec"]
    return [(f"reference/{name}.md", name) for name in names]


def _modules(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("__")]


def _folders(folder: Path, name: str) -> list[str]:
    found = [name] if _modules(folder) else []
    for path in sorted(folder.iterdir()):
        if (path / "__init__.py").exists():
            found += _folders(path, f"{name}.{path.name}")
    return found


def _reference(room: str) -> str:
    """Write the page of a room, with each of its modules; that of `steerdec` shows the public names only."""
    folder = ROOT.joinpath(*room.split("."))
    if room == "steerdec" or not folder.is_dir():
        options = "{show_root_heading: false, show_submodules: false}"
        return f"# {room}\n\n::: {room}\n    options: {options}\n"
    blocks = [f"::: {room}.{path.stem}\n" for path in _modules(folder)]
    return f"# {room}\n\n" + "\n".join(blocks)


def _notebook(path: Path) -> str:
    """Write a notebook as a page: its text, its code, and what the code showed when the notebook was saved."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_output(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        return f"<div>{''.join(data['text/html'])}</div>"
    if "image/png" in data:
        return f'<img alt="the plot" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    return f"```text\n{''.join(data.get('text/plain', output.get('text', []))).rstrip()}\n```"


@cache
def _drawn(source: str) -> str:
    """Draw a diagram as one line of HTML. Raises RuntimeError if Mermaid cannot read it."""
    import mermaidx

    name = f"diagram-{abs(hash(source)):x}"
    svg: Any = mermaidx.render(source).svg()
    return f'<figure class="diagram">{" ".join(svg.replace("my-svg", name).split())}</figure>'
