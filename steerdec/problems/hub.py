"""Problem sets from the Hugging Face hub: the named ones, and any other as `hub:OWNER/NAME`.

The texts stay there: AIME's belong to the MAA and must not be redistributed.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from steerdec.problems.problem import Problem, ProblemError
from steerdec.problems.query import split_query
from steerdec.problems.rows import OPTIONS, Columns, Row, problems_of

MAX_ROWS = 100_000
COLUMNS = Columns(id=None, group=None, kind=None)  # in a set of the hub, columns of these names may hold anything


@dataclass(frozen=True)
class HubSet:
    """Where a set is, and which of its columns hold what. `name` stands before the ids of its problems."""

    name: str
    repo: str
    revision: str | None = None  # a commit, branch or tag; None takes the newest
    split: str | None = None  # None: the only one
    config: str | None = None
    columns: Columns = COLUMNS
    title: str = ""  # the set as messages name it


class Table(NamedTuple):
    """The rows of a split, and the commit they come from, where the hub library tells it."""

    rows: Sequence[Row]
    commit: str | None


def _named(name: str, at: str, split: str, kind: str, *, config: str | None = None, id: str | None = None) -> HubSet:
    repo, _, revision = at.partition("@")
    columns = replace(COLUMNS, id=id, one_kind=kind, required=(id,) if id else ())
    return HubSet(name, repo, revision, split, config, columns, title=name)


def _matharena(name: str, at: str, kind: str = "math") -> HubSet:
    return _named(name, f"MathArena/{at}", "train", kind, id="problem_idx")


# Each at the commit that published evaluation code pins (docs/log.md), since owners correct and extend their sets.
_ALL = (
    _named("aime24", "HuggingFaceH4/aime_2024@2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "train", "integer"),
    _matharena("aime25", "aime_2025@c94da77eb22bbd6439e62a323bec18493a421302", "integer"),
    _matharena("aime26", "aime_2026@d2de22f3c656b4f56cf8981212186377d1e23bc3", "integer"),
    _named("amc23", "math-ai/amc23@80815d37005feb82cd7f8fbc6901d5d3eff43057", "test", "math"),
    _matharena("hmmt-feb25", "hmmt_feb_2025@6fdc4277120810ff75aa22d2d5489b91f7a262a1"),
    _matharena("hmmt-nov25", "hmmt_nov_2025@118dbfb45c4c9467c672268ed55166642897aa46"),
    _matharena("hmmt-feb26", "hmmt_feb_2026@02fba4f74d8e68e73e66a02d540fd979c05c274c"),
    _matharena("brumo25", "brumo_2025@6de9bc0987f5710c6376ee980e1483dbeb55cfda"),
    _matharena("smt25", "smt_2025@d8e99d83f1583842f46d4953cd960eea5d887e45"),
    _matharena("apex25", "apex_2025@ac8a641db12cc87be39e61ea89f2e04c80c5f2e7"),
    _matharena("apex-shortlist", "apex-shortlist@f3efdf224ef665f129ddaae37699f6098c65781b"),
    _named(
        "math500",
        "HuggingFaceH4/MATH-500@6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        "test",
        "math",
        id="unique_id",
    ),
    _named("gsm8k", "openai/gsm8k@740312add88f781978c0658806c59bc2815b9866", "test", "number", config="main"),
)
SETS = {one.name: one for one in _ALL}

_FORM = "hub:OWNER/NAME@REVISION?split=SPLIT&problem=COLUMN&answer=COLUMN"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = re.compile(r"[\w./-]+")


def find(name: str) -> HubSet | None:
    """Return the set that `NAME`, `NAME@REVISION` or `hub:...` names; None where it names no set of the hub.

    Raises:
        ProblemError: the name is not of that form.
    """
    if name.startswith("hub:"):
        return _any(name)
    base, at, revision = name.partition("@")
    if base.partition("?")[0] in SETS and "?" in name:
        raise ProblemError(f"--problems: {name}: {base.partition('?')[0]} takes no options; {_FORM} does")
    if base not in SETS:
        return None
    return _at(SETS[base], revision) if at else SETS[base]


def _any(name: str) -> HubSet:
    where, options = split_query(name, ("split", "config", *OPTIONS))
    repo, at, revision = where.removeprefix("hub:").partition("@")
    if not _REPO.fullmatch(repo):
        raise ProblemError(f"--problems: {name}: {repo!r} is not OWNER/NAME; the form is {_FORM}")
    columns = COLUMNS.named(options)
    title = f"hub:{repo}{name[len(where) :]}"
    found = HubSet(repo.partition("/")[2], repo, None, options.get("split"), options.get("config"), columns, title)
    return _at(found, revision) if at else found


def _at(one: HubSet, revision: str) -> HubSet:
    if not _REVISION.fullmatch(revision):
        raise ProblemError(f"--problems: {one.title}: {revision!r} is not a revision: a commit, branch or tag")
    return replace(one, revision=revision)


def load(where: HubSet) -> tuple[list[Problem], str]:
    """Return the problems, and a name that loads exactly them again. Raises ProblemError."""
    table = download(where)
    rows = [(f"{where.title}, row {number}", _row(where, number, row)) for number, row in enumerate(table.rows)]
    return problems_of(rows, replace(where.columns, id="id")), _pinned(where, table.commit)


def _row(where: HubSet, number: int, row: Row) -> Row:
    """Return the row with an id that begins with the name of the set."""
    columns = where.columns
    own = number if columns.id is None else row.get(columns.id)
    changed = {**row, "id": None if own is None else f"{where.name}-{own}"}
    if columns.one_kind == "integer":
        with suppress(KeyError, ValueError, TypeError):
            changed[columns.answer] = str(int(str(row[columns.answer])))  # AIME has 025
    return changed


def _pinned(where: HubSet, commit: str | None) -> str:
    revision = commit or where.revision
    if revision is None:
        return where.title
    base, mark, query = where.title.partition("?")
    return f"{base}@{revision}{mark}{query}"


def download(where: HubSet) -> Table:
    """Return all rows, from the cache if they are there. Raises ProblemError."""
    if Path(where.repo).exists():  # the hub library would read it instead
        raise ProblemError(
            f"problem set {where.title}: the folder {where.repo} here has the name of the set on the hub; "
            "start from another folder"
        )
    try:
        return _download(where)
    except ProblemError:
        raise
    except Exception as e:  # datasets, huggingface_hub, fsspec and the network each raise their own
        reason = " ".join(str(e).split()) or type(e).__name__
        at = f" at revision {where.revision}" if where.revision else ""
        raise ProblemError(
            f"problem set {where.title}: {where.repo}{at} could not be fetched from the Hugging Face hub "
            f"({reason[:200]}); a JSONL file with problem, answer can be given instead"
        ) from None


def _download(where: HubSet) -> Table:
    from datasets import load_dataset_builder  # seconds to import, and only these sets need it

    # Else it prints a line per retry; our error reports the failure in one line.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    builder = load_dataset_builder(where.repo, where.config, revision=where.revision)
    commit = builder.hash if re.fullmatch(r"[0-9a-f]{40}", str(builder.hash)) else None
    _check_revision(where, commit, from_cache=type(builder).__module__.endswith(".cache.cache"))
    builder.download_and_prepare()
    split = _split(where, list(builder.info.splits or ()))
    dataset = builder.as_dataset(split=split)
    if len(dataset) > MAX_ROWS:
        raise ProblemError(f"problem set {where.title}: {len(dataset)} rows; at most {MAX_ROWS} can be used")
    wanted = where.columns.found(f"problem set {where.title}", dataset.column_names)
    return Table(list(dataset.select_columns(wanted)), commit)


def _check_revision(where: HubSet, commit: str | None, *, from_cache: bool) -> None:
    """Without the hub, the library takes what its cache has, of whatever revision. Raises ProblemError."""
    if from_cache and where.revision is not None and not str(commit).startswith(where.revision):
        raise ProblemError(
            f"problem set {where.title}: the hub cannot be reached, and the cache has revision {commit}, "
            f"not {where.revision}"
        )


def _split(where: HubSet, there: list[str]) -> str:
    if where.split is None and len(there) == 1:
        return there[0]
    if where.split not in there:
        said = "no split is given" if where.split is None else f"no split {where.split!r}"
        raise ProblemError(f"problem set {where.title}: {said}; there are {', '.join(map(str, there))}")
    return where.split
