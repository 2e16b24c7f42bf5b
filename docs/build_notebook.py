"""Run the example notebook and keep what it shows: `python docs/build_notebook.py`. Takes minutes.

What is kept: tables and pictures, and what cells print. What libraries log is left out, because it names this machine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient import NotebookClient

NOTEBOOK: Final = Path(__file__).parent / "notebooks" / "steering.ipynb"
LIMIT_S: Final = 1800  # of one cell; servers start slowly on a busy machine
_KEPT: Final = ("text/html", "image/png", "text/plain")  # the first that there is


def executed(folder: Path) -> Any:
    """Return the notebook with what its cells show, run in `folder`. Raises CellExecutionError."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=LIMIT_S, resources={"metadata": {"path": str(folder)}})
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata, cell.execution_count = {}, None
            cell.outputs = [kept for output in cell.outputs if (kept := _kept(output, "print(" in cell.source))]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def _kept(output: Any, prints: bool) -> Any:
    if output.output_type == "stream":
        return output if prints and output.name == "stdout" else None
    output.data = {kind: output.data[kind] for kind in _KEPT if kind in output.data}
    output.data = dict([next(iter(output.data.items()))])
    if "execution_count" in output:
        output.execution_count = None
    return output


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(Path(folder)), NOTEBOOK)
