"""Run folders whose files were damaged or edited by hand: each reader says in one line what is wrong, and where."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steerdec.benchmarks.design import from_run
from steerdec.benchmarks.export.formats import export
from steerdec.benchmarks.report.compare import write_comparison
from steerdec.benchmarks.report.run_folder import read_run
from steerdec.benchmarks.verdicts.summary import summarize
from steerdec.benchmarks.view.index import Reader
from steerdec.benchmarks.view.progress import progress_of
from steerdec.common.errors import SteerdecError
from steerdec.common.files import FileError, write_atomically
from steerdec.problems.sets import load_problems
from steerdec.records.folder import load_run
from steerdec.records.run import read_settings
from tests.support.make_run import make_run

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    problems = load_problems("embedded", limit=4)
    return make_run(tmp_path_factory.mktemp("whole") / "run", k=2, problems=problems, traces=1)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


def setting(*place: str, value: Any) -> Change:
    """Change a field of run.json."""

    def change(folder: Path) -> None:
        path = folder / "run.json"
        whole = json.loads(path.read_text())
        holder = whole
        for name in place[:-1]:
            holder = holder[int(name) if name.isdecimal() else name]
        holder[place[-1]] = value
        path.write_text(json.dumps(whole))

    return change


def sample(**fields: Any) -> Change:
    """Change fields of the fourth line of samples.jsonl."""

    def change(folder: Path) -> None:
        path = folder / "samples.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        lines[3] = json.dumps(json.loads(lines[3]) | fields).encode() + b"\n"
        path.write_bytes(b"".join(lines))

    return change


def content(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text) and None


def replaced(name: str, make: Callable[[Path], None]) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


READERS: dict[str, Callable[[Path], object]] = {
    "load_run": lambda folder: load_run(folder).to_arrow(tokens=True),
    "summary": lambda folder: (load_run(folder), summarize(folder)),
    "report": lambda folder: (load_run(folder), read_run(folder, summarize(folder))),
    "compare": lambda folder: write_comparison(folder, folder, folder / "page.html"),
    "plan": from_run.observe,
    "view": lambda folder: progress_of(Reader(folder).index()),
    "parquet": lambda folder: export(folder, "parquet", None),
    "every-eval-ever": lambda folder: export(folder, "every-eval-ever", None),
}
BROKEN: dict[str, tuple[Change, str]] = {
    "run.json: samples": (setting("samples", value=-4), "samples"),
    "run.json: created": (setting("created", value="yesterday"), "created"),
    "run.json: temperature": (setting("temperature", value=-1), "temperature"),
    "run.json: threshold": (setting("threshold_nats", value="inf"), "threshold_nats"),
    "run.json: n": (setting("problems", "n", value=10**9), "n is 1000000000, but there are 4 different ids"),
    "run.json: nested": (content("run.json", "[" * 100_000), "run.json"),
    "run.json: folder": (replaced("run.json", Path.mkdir), "Is a directory"),
    "samples.jsonl: index": (sample(sample=10**9), "line 4 is not a sample: sample: .*1000000000"),
    "samples.jsonl: seed": (sample(seed=2**70), "line 4 is not a sample: seed"),
    "samples.jsonl: tokens": (sample(completion_tokens=2**40), "line 4 is not a sample: completion_tokens"),
    "samples.jsonl: true": (sample(sample=True), r"line 4 is not a sample: sample: .*\(it is true\)"),
    "samples.jsonl: arm": (sample(arm="ghost"), 'line 4.*"ghost"'),
    "samples.jsonl: problem": (sample(problem_id="ghost"), 'line 4.*"ghost"'),
    "samples.jsonl: folder": (replaced("samples.jsonl", Path.mkdir), "not a regular file|Is a directory"),
}


@pytest.mark.parametrize("damage", BROKEN)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_run_is_one_line_that_names_the_place(folder: Path, reader: str, damage: str) -> None:
    change, named = BROKEN[damage]
    change(folder)
    read = READERS[reader]
    if damage.startswith("run.json") and reader == "plan":  # as the command does
        read = load_run
    with pytest.raises(SteerdecError, match=named) as refused:
        read(folder)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "change",
    [
        setting("model", value="a\ud800b"),
        setting("problems", "source", value="embedded"),
        setting("arms", "arms", "0", "about", value="\udfff"),
        sample(text="\ud800", answer="\udfff"),
        sample(entropy_nats=[0.5], fork=[True], token_text=["\udc00"]),
        sample(entropy_nats=[0.1, 0.2], fork=[True], token_text=["a"]),
    ],
    ids=["model", "same", "arm", "text", "token", "lengths"],
)
def test_half_a_surrogate_pair_anywhere_stops_no_reader(folder: Path, reader: str, change: Change) -> None:
    change(folder)
    READERS[reader](folder)


def test_a_path_that_is_not_utf8_is_recorded_and_read_again(folder: Path, tmp_path: Path) -> None:
    written = read_settings(folder / "run.json")
    source = os.fsdecode(b"/data/caf\xe9.jsonl")
    changed = written.model_copy(update={"problems": written.problems.model_copy(update={"source": source})})
    changed.write(tmp_path)
    assert read_settings(tmp_path / "run.json").problems.source == source


@pytest.mark.parametrize("name", ["x" * 300, "file/x", "."])
def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=r"cannot be written \(.+\)$"):
        write_atomically(Path(name), "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_a_library_cannot_write_to_is_named(folder: Path, tmp_path: Path) -> None:
    """pyarrow takes paths in UTF-8 only."""
    with pytest.raises(FileError, match=r"samples\.parquet cannot be written \(.+\)$"):
        export(folder, "parquet", tmp_path / os.fsdecode(b"caf\xe9"))
    export(folder, "every-eval-ever", tmp_path / os.fsdecode(b"caf\xe9"))
