"""The rows of a problem file: JSONL (one object per line, gzipped where the name ends in `.gz`) or `.parquet`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from steerdec.common.files import read_at_most
from steerdec.common.validation import shown
from steerdec.problems.problem import ProblemError
from steerdec.problems.rows import Row

MAX_BYTES = 1 << 30


def read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) for every row: FILE:LINE of a JSONL file, "FILE, row N" (from 0) of a Parquet file.

    Raises:
        ProblemError: the file cannot be read, or a line is not an object.
    """
    content = _content(path)
    yield from (_parquet if path.suffix == ".parquet" else _jsonl)(path, content)


def _content(path: Path) -> bytes:
    try:
        return read_at_most(path, MAX_BYTES, gzipped=path.suffix == ".gz")
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise ProblemError(
            f"{path}: cannot be unpacked ({e}); a name with .gz has to be a gzipped JSONL file"
        ) from None
    except OSError as e:
        raise ProblemError(f"{path}: cannot be read ({e.strerror})") from None


def _jsonl(path: Path, content: bytes) -> Iterator[tuple[str, Row]]:
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")  # not str.splitlines: a text may contain U+2028
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as e:
            raise ProblemError(f"{where}: not UTF-8 ({e.reason} at byte {e.start + 1} of the line)") from None
        except (ValueError, RecursionError) as e:
            raise ProblemError(f"{where}: not JSON ({e}); one object per line is needed") from None
        if not isinstance(row, dict):
            raise ProblemError(f"{where}: {shown(row)} is not an object with problem, answer")
        yield where, row


def _parquet(path: Path, content: bytes) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    except (pa.ArrowException, OSError) as e:
        reason = " ".join(str(e).split())
        raise ProblemError(f"{path}: not a Parquet file ({reason[:160]})") from None
    for number, row in enumerate(rows):
        yield f"{path}, row {number}", row
