"""A finished or unfinished run as Python objects and data frames: `steerdec.load_run`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from steerdec.common.journal import JournalError
from steerdec.records import samples as sample_file
from steerdec.records.run import NAME as RUN_JSON
from steerdec.records.run import Settings, read_settings
from steerdec.records.samples import Sample, read_samples
from steerdec.records.summary import NAME as SUMMARY_JSON
from steerdec.records.summary import Summary, read_summary

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_BATCH: Final = 1024  # samples converted at once
_TOKENS: Final = ("entropy_nats", "fork", "token_text")
_TYPES: Final[dict[str, Any]] = {
    "sample": pa.int32(),
    "seed": pa.int64(),
    "completion_tokens": pa.int32(),
    "forks": pa.int32(),
    "guard_token": pa.int32(),
    "position": pa.int32(),
    "replayed_sample": pa.int32(),
    "mean_entropy_nats": pa.float64(),
    "mean_sampled_entropy_nats": pa.float64(),
    "entropy_nats": pa.list_(pa.float32()),
    "fork": pa.list_(pa.bool_()),
    "token_text": pa.list_(pa.string()),
}


@dataclass(frozen=True)
class Run:
    """A run folder. Samples are read from the file on every call, so an unfinished run can be watched.

    Examples:
        >>> run = load_run("runs/first")                                  # doctest: +SKIP
        >>> run.settings.model, run.settings.arms.baseline                # doctest: +SKIP
        >>> frame = run.to_pandas()                                       # doctest: +SKIP
        >>> frame.groupby("arm").correct.mean()                           # doctest: +SKIP
    """

    folder: Path
    settings: Settings  # run.json

    @property
    def summary(self) -> Summary | None:
        """What `steerdec bench report` last wrote; None before its first call. Raises SummaryFileError."""
        path = self.folder / SUMMARY_JSON
        return read_summary(path) if path.exists() else None

    def samples(self) -> Iterator[Sample]:
        """Yield the samples in the order they arrived; a line that was cut off at the end of the file is left out.

        Raises:
            JournalError: a line is not a sample of this run, or the file is missing or cannot be read.
        """
        path = self.folder / sample_file.NAME
        if not path.exists():
            raise JournalError(f"{path} is missing: nothing was sampled yet")
        return self._own(path)

    def _own(self, path: Path) -> Iterator[Sample]:
        arms, problems = {arm.name for arm in self.settings.arms.arms}, set(self.settings.problems.ids)
        for number, sample in enumerate(read_samples(path), start=1):
            for field, name, known in (("arm", sample.arm, arms), ("problem_id", sample.problem_id, problems)):
                if name not in known:
                    raise JournalError(f'{path} line {number}: {field} "{name[:60]}" is not of this run')
            yield sample

    def to_arrow(self, *, tokens: bool = False) -> pa.Table:
        """Return one row per sample: the fields of samples.jsonl, and `correct` (null where a sample is ungraded).

        Args:
            tokens: with the per-token lists, which a few samples keep.

        Raises:
            JournalError: see `samples`.
        """
        schema = sample_schema(tokens=tokens)
        names = [name for name in schema.names if name != "correct"]
        batches, rows = [], []
        for sample in self.samples():
            row = {name: getattr(sample, name) for name in names}
            rows.append(row | {"correct": None if sample.grade == "ungraded" else sample.grade == "correct"})
            if len(rows) == _BATCH:
                batches.append(pa.RecordBatch.from_pylist(rows, schema))
                rows = []
        batches.append(pa.RecordBatch.from_pylist(rows, schema))
        return pa.Table.from_batches(batches, schema)

    def to_pandas(self, *, tokens: bool = False) -> pd.DataFrame:
        """Return `to_arrow` as a pandas data frame; whole numbers and booleans stay such beside nulls.

        Raises:
            ImportError: pandas is not installed.
            JournalError: see `samples`.
        """
        import pandas as pd

        types = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
        return self.to_arrow(tokens=tokens).to_pandas(types_mapper=types.get)

    def to_polars(self, *, tokens: bool = False) -> pl.DataFrame:
        """Return `to_arrow` as a polars data frame. Raises ImportError if polars is not installed."""
        import polars as pl

        frame = pl.from_arrow(self.to_arrow(tokens=tokens))
        assert isinstance(frame, pl.DataFrame), "a table is a data frame"
        return frame


def load_run(folder: str | Path) -> Run:
    """Open a run folder, finished or not.

    Raises:
        SettingsError: the folder has no run.json that can be read.
    """
    path = Path(folder)
    return Run(path, read_settings(path / RUN_JSON))


def sample_schema(*, tokens: bool) -> pa.Schema:
    """Return the columns of `Run.to_arrow`."""
    names = [field.name for field in fields(Sample) if tokens or field.name not in _TOKENS]
    return pa.schema([(name, _TYPES.get(name, pa.string())) for name in names] + [("correct", pa.bool_())])
