"""Read two checkpoints on disk: what they store, whether they can be compared, and the rows of a tensor in chunks.

A file is opened again for every chunk. safetensors maps a file into memory, and touched pages stay counted until the
map is closed. With one map per file, a pass over it would end with the whole file resident.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open

from steerdec.common.errors import InputError

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
MANTISSA_BITS: Final = {"BF16": 7, "F16": 10, "F32": 23, "F64": 52}  # what can be compared, as safetensors names it
CHUNK_ELEMENTS: Final = 1 << 21
_FINGERPRINT_ELEMENTS: Final = 1 << 11
_FEW: Final = 3  # differences named in a message


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    name: str
    path: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint by name, in name order; `tied` names are stored a second time and left out there."""

    name: str
    tensors: Mapping[str, Stored]
    tied: tuple[str, ...]

    def dtypes(self) -> dict[str, int]:
        """Count the parameters stored in each dtype, largest count first."""
        counts: Counter[str] = Counter()
        for tensor in self.tensors.values():
            counts[tensor.dtype] += tensor.parameters
        return dict(counts.most_common())


def read_checkpoint(name: str, folder: Path, ties: Mapping[str, str]) -> Checkpoint:
    """Read what the safetensors files of a model's folder hold; only their headers and tied tensors are read.

    Args:
        name: for messages.
        ties: {name: name of the tensor it is tied to} in this model. Both may be stored. transformers ties them if they
            are equal, and so does this function.

    Raises:
        InputError: there is no such file, or one cannot be read.
    """
    tensors: dict[str, Stored] = {}
    for path in _files(name, folder):
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    part = file.get_slice(key)
                    tensors[key] = Stored(key, path, tuple(part.get_shape()), str(part.get_dtype()))
        except (SafetensorError, OSError) as e:
            raise InputError(f"{name}: {path.name} cannot be read as safetensors ({e})") from None
    twice = [
        copy
        for copy, source in sorted(ties.items())
        if copy in tensors and source in tensors and _same(tensors[copy], tensors[source])
    ]
    return Checkpoint(name, {key: tensors[key] for key in sorted(tensors) if key not in twice}, tuple(twice))


def fingerprint(checkpoint: Checkpoint) -> str:
    """Hash the first numbers of every tensor.

    A copy has the same hash, and a folder in which training continued has another one.
    """
    digest = hashlib.sha256()
    for tensor in checkpoint.tensors.values():
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape} ".encode())
        for first in chunks(tensor, _FINGERPRINT_ELEMENTS):
            digest.update(first.contiguous().view(torch.uint8).numpy().tobytes())
            break
    return digest.hexdigest()[:16]


def _files(name: str, folder: Path) -> list[Path]:
    """Return the files of the weights, in transformers' order of preference. Raises InputError."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    try:
        index: Any = json.loads((folder / INDEX).read_bytes())
        files = sorted({folder / str(file) for file in index["weight_map"].values()})
    except FileNotFoundError:
        raise InputError(f"{name} holds neither {SINGLE} nor {INDEX}; only safetensors can be compared") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise InputError(f"{name}: {INDEX} is not an index of safetensors files ({type(e).__name__}: {e})") from None
    if missing := [path.name for path in files if not path.is_file()]:
        raise InputError(f"{name}: {missing[0]}, named in {INDEX}, does not exist ({len(missing)} files missing)")
    return files


def _same(one: Stored, two: Stored) -> bool:
    """Return whether two tensors are equal bit for bit."""
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    pairs = zip(chunks(one), chunks(two), strict=True)
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


def comparable(base: Checkpoint, tuned: Checkpoint) -> list[tuple[Stored, Stored]]:
    """Pair the tensors of both by name, without empty ones.

    Raises:
        InputError: names, shapes, or dtypes differ, or a dtype is not a floating-point type.
    """
    one, two = base.tensors, tuned.tensors
    if alone := sorted(one.keys() ^ two.keys()):
        only = [f"{name} is only in {base.name if name in one else tuned.name}" for name in alone]
        raise InputError(f"{base.name} and {tuned.name} have different tensors: {_few(only)}; {_ONLY_ALIKE}")
    if unlike := [f"{n} is {list(one[n].shape)} and {list(two[n].shape)}" for n in one if one[n].shape != two[n].shape]:
        raise InputError(f"{base.name} and {tuned.name} have different shapes: {_few(unlike)}; {_ONLY_ALIKE}")
    if unlike := [f"{n} is {one[n].dtype} and {two[n].dtype}" for n in one if one[n].dtype != two[n].dtype]:
        raise InputError(
            f"{base.name} and {tuned.name} are stored in different dtypes: {_few(unlike)}; rounding one to the other "
            "would look like an update, or hide one; save both in the dtype that was trained"
        )
    if foreign := [f"{n} is {t.dtype}" for n, t in one.items() if t.dtype not in MANTISSA_BITS]:
        raise InputError(f"{base.name}: {_few(foreign)}; only {', '.join(MANTISSA_BITS)} can be compared")
    if not any(tensor.parameters for tensor in one.values()):
        raise InputError(f"{base.name} and {tuned.name} hold no parameters")
    return [(one[name], two[name]) for name in one if one[name].parameters]


_ONLY_ALIKE: Final = "only checkpoints of one architecture can be compared"


def _few(differences: Sequence[str]) -> str:
    rest = len(differences) - _FEW
    return ", ".join(differences[:_FEW]) + (f", and {rest} more" if rest > 0 else "")


def chunks(stored: Stored, elements: int = CHUNK_ELEMENTS) -> Iterator[torch.Tensor]:
    """Yield the tensor's rows in order, at most `elements` numbers at a time or one row; [rows, numbers per row].

    A vector has one number per row, and a scalar is one row. A chunk is part of the mapped file. Drop it before you
    request the next one, or both stay resident.
    """
    rows = stored.shape[0] if stored.shape else 1
    step = max(1, elements // max(1, stored.parameters // max(1, rows)))
    for begin in range(0, rows, step):
        with safe_open(stored.path, "pt") as file:
            part = file.get_slice(stored.name)[begin : begin + step] if stored.shape else file.get_tensor(stored.name)
        yield part.reshape(part.shape[0] if stored.shape else 1, -1)
        del part
