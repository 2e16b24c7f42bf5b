"""The samples of a run as one Parquet file, for any tool that reads tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from steerdec.common.errors import reason_of
from steerdec.common.files import FileError
from steerdec.records.folder import load_run

NAME = "samples.parquet"


def write(folder: Path, out: Path) -> list[Path]:
    """Write one row per sample, with the per-token lists of those that kept them; run.json goes into the metadata.

    Raises:
        SettingsError, JournalError: the run cannot be read.
        FileError: the file cannot be written.
    """
    run = load_run(folder)
    table = run.to_arrow(tokens=True)
    table = table.replace_schema_metadata({"steerdec_run": run.settings.as_json()})
    path = out / NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")
    except (OSError, UnicodeEncodeError) as e:  # pyarrow takes paths in UTF-8 only
        raise FileError(f"{path} cannot be written ({reason_of(e)})") from None
    return [path]
