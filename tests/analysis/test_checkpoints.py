"""Two checkpoints compared a chunk at a time: against whole tensors in float64, and updates that were planted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from steerdec.analysis.compare import checkpoints, update_rank, updates
from steerdec.analysis.compare.checkpoints import Checkpoint, comparable, read_checkpoint
from steerdec.analysis.compare.updates import TOLERANCES, Update, spacing_limit, total, update
from steerdec.common.errors import AnalysisError, InputError

CHUNK = 37  # numbers; no side of a tensor below divides by it


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], ties: dict[str, str] | None = None) -> Checkpoint:
    """`tensors` on disk in two shards with an index, and read back."""
    folder.mkdir(parents=True)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name].contiguous().clone() for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / checkpoints.INDEX).write_text(json.dumps(index))
    return read_checkpoint(folder.name, folder, ties or {})


def compared(folder: Path, base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor]) -> dict[str, Update]:
    pair = comparable(checkpoint(folder / "base", base), checkpoint(folder / "tuned", tuned))
    return {one.name: update(one, two, chunk_elements=CHUNK) for one, two in pair}


def slow(base: torch.Tensor, tuned: torch.Tensor) -> dict[str, Any]:
    """The same with the whole tensor at once, by numpy in float64."""
    one, two = base.double().numpy(), tuned.double().numpy()
    change = two - one
    raw = [t.contiguous().reshape(-1).view(torch.uint8).reshape(-1, t.element_size()) for t in (base, tuned)]
    return {
        "bit_equal": int((raw[0] == raw[1]).all(1).sum()),
        "within": tuple(int((np.abs(change) <= t).sum()) for t in TOLERANCES),
        "change_squares": pytest.approx(float((change**2).sum()), rel=1e-12),
        "base_squares": pytest.approx(float((one**2).sum()), rel=1e-12),
        "largest_change": float(np.abs(change).max()),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_tensor_in_chunks_is_what_it_is_whole(dtype: torch.dtype, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(3)
    shapes = {"scalar": (), "vector": (101,), "tall": (53, 9), "wide": (9, 53), "row": (1, 71), "cube": (5, 7, 11)}
    base, tuned = {}, {}
    for name, shape in shapes.items():
        base[name] = (0.05 * torch.randn(shape, generator=rng, dtype=torch.float64)).to(dtype)
        change = torch.randn(shape, generator=rng, dtype=torch.float64) * 10.0 ** torch.randint(-7, -2, shape)
        tuned[name] = (base[name].double() + change).to(dtype)
    base["vector"][:2], tuned["vector"][:2] = torch.tensor([0.0, -0.0]), torch.tensor([-0.0, -0.0])
    found = compared(tmp_path, base, tuned)
    assert found.keys() == shapes.keys()
    for name, own in found.items():
        expected = slow(base[name], tuned[name])
        assert {key: getattr(own, key) for key in expected} == expected, name
        matrix = len(shapes[name]) == 2
        assert (own.rank is not None) == matrix
        if matrix:
            rows = base[name].shape
            change = tuned[name].double().numpy() - base[name].double().numpy()
            values = np.linalg.svd(change, compute_uv=False)
            assert own.rank == int((values > max(rows) * 2.0**-23 * values[0]).sum())
    assert found["vector"].within[0] == found["vector"].bit_equal + 1, "0 and -0 are one number, in two ways"


def test_totals_weigh_every_parameter_alike(tmp_path: Path) -> None:
    base = {"layers.0.w": torch.ones(30, 10), "layers.1.w": torch.ones(30, 10), "norm": torch.ones(400)}
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned["layers.0.w"][0] += 1.0  # 10 of 1000, rank 1 of 10
    found = compared(tmp_path, base, tuned)
    told = updates.as_json(list(found.values()))
    whole = told["total"]
    assert whole["bit_equal"] == whole["within"]["0.0001"] == 0.99
    assert (whole["parameters"], whole["tensors"], whole["unchanged_tensors"]) == (1000, 3, 2)
    assert whole["relative_change"] == pytest.approx((10 / 1000) ** 0.5)
    assert (whole["rank"], whole["matrices"], whole["rank_at_least"]) == (0.1, 1, 0)
    assert {kind: t["tensors"] for kind, t in told["kinds"].items()} == {"layers.*.w": 2, "norm": 1}
    assert told["kinds"]["layers.*.w"]["bit_equal"] == pytest.approx(590 / 600)
    assert told["tensors"]["norm"]["rank"] is None
    json.dumps(told, allow_nan=False)


def test_a_planted_update_has_its_share_and_its_rank(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    base = torch.randint(-50, 50, (64, 80), generator=rng).float()  # integers: nothing is rounded
    low = torch.randint(1, 4, (64, 3), generator=rng).float() @ torch.randint(1, 4, (3, 80), generator=rng).float()
    sparse = torch.zeros(64 * 80)
    sparse[torch.randperm(64 * 80, generator=rng)[:512]] = 1.0
    found = compared(
        tmp_path,
        {"low": base, "sparse": base, "none": base},
        {"low": base + low, "sparse": base + sparse.reshape(64, 80), "none": base},
    )
    assert (found["low"].rank, found["low"].rank_of, found["low"].bit_equal) == (3, 64, 0)
    assert found["sparse"].bit_equal == 64 * 80 - 512
    assert found["sparse"].change_squares == 512
    assert (found["none"].rank, found["none"].bit_equal, found["none"].change_squares) == (0, 64 * 80, 0.0)


# Rank --------------------------------------------------------------------------------------------


def rank_of(matrix: torch.Tensor, rows: int = 7) -> update_rank.Rank:
    found = update_rank.RankOfRows(*matrix.shape, "w")
    for begin in range(0, len(matrix), rows):
        found.add(matrix[begin : begin + rows])
    return found.result()


@pytest.mark.parametrize(("m", "n"), [(90, 20), (20, 90), (40, 40), (90, 60), (60, 90)])
@pytest.mark.parametrize("planted", [0, 1, 5, 16, 20])
def test_rank_is_exact_up_to_a_side_and_a_bound_beyond(
    m: int, n: int, planted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(update_rank, "EXACT_SIDE", 40)
    monkeypatch.setattr(update_rank, "SKETCH", 16)
    rng = torch.Generator().manual_seed(m * n + planted)
    factors = [torch.randn(size, generator=rng, dtype=torch.float64) for size in ((m, planted), (planted, n))]
    found = rank_of(factors[0] @ factors[1])
    assert found.of == min(m, n)
    if min(m, n) <= 40:
        assert (found.rank, found.at_least) == (planted, False)
    else:
        assert (found.rank, found.at_least) == (min(planted, 16), planted >= 16)


def test_what_is_below_the_tolerance_is_no_rank() -> None:
    """2^-23 times the longer side: 1.2e-6 for 10 rows, 2.4e-5 for 200."""
    diagonal = torch.diag(torch.tensor([1.0, 1e-3, 3e-6, 1e-9] + [0.0] * 6, dtype=torch.float64))
    longer = torch.cat([diagonal, torch.zeros(190, 10, dtype=torch.float64)])
    assert (rank_of(diagonal).rank, rank_of(longer).rank, rank_of(longer.T).rank) == (3, 2, 2)


def test_a_matrix_too_wide_to_hold_is_sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_rank, "_MOST_HELD", 1000)
    monkeypatch.setattr(update_rank, "SKETCH", 12)
    rng = torch.Generator().manual_seed(0)
    wide = torch.randn(30, 4, generator=rng, dtype=torch.float64) @ torch.randn(4, 50, generator=rng).double()
    assert rank_of(wide) == update_rank.Rank(4, 30, at_least=False)


# Spacing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_spacing_limit_is_where_the_next_number_is_further_than_the_tolerance(dtype: torch.dtype) -> None:
    name = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
    values = (2.0 ** torch.linspace(-10, 10, 997, dtype=torch.float64)).to(dtype)
    steps = {2: torch.int16, 4: torch.int32}[values.element_size()]
    gap = (values.view(steps) + 1).view(dtype).double() - values.double()
    for tolerance in TOLERANCES[1:]:
        assert ((values.double() >= spacing_limit(name, tolerance)) == (gap > tolerance)).all()


def test_small_updates_vanish_in_bf16_and_the_report_says_where_they_could_not_show(tmp_path: Path) -> None:
    """arXiv 2509.04259: every weight moves by 1e-5, and as stored hardly any does."""
    rng = torch.Generator().manual_seed(0)
    before = torch.sign(torch.randn(4000, generator=rng)) * (0.01 + 0.05 * torch.rand(4000, generator=rng))
    base, tuned = before.bfloat16(), (before.bfloat16().float() + 1e-5).bfloat16()
    stored = total(list(compared(tmp_path, {"w": base}, {"w": tuned}).values()))
    assert stored.bit_equal == 1.0
    assert stored.wider["1e-05"] == 1.0
    full = total(list(compared(tmp_path / "f32", {"w": base.float()}, {"w": base.float() + 1e-5}).values()))
    assert (full.bit_equal, full.wider["1e-05"]) == (0.0, 0.0)


# Memory ------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    """A pass over 2 x 96 MiB, in a process of its own, by its peak: mapped pages count in it."""
    pair = [{"w": torch.full((1 << 20, 48), value, dtype=torch.bfloat16)} for value in (1.0, 1.5)]
    for name, tensors in zip(("base", "tuned"), pair, strict=True):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    program = """
import sys
from pathlib import Path
from steerdec.analysis.compare.checkpoints import Stored
from steerdec.analysis.compare.updates import update

def peak_kib():  # getrusage's would be the parent's at first
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1])

base, tuned = (Stored("w", Path(path), (1 << 20, 48), "BF16") for path in sys.argv[1:])
small = Stored("w", base.path, (1 << 10, 48), "BF16")
update(small, small)
Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
before = peak_kib()
found = update(base, tuned, chunk_elements=1 << 18)
print(found.bit_equal, found.rank, (peak_kib() - before) // 1024)
"""
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("base", "tuned")]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    equal, rank, grown_mib = (int(word) for word in done.stdout.split())
    assert (equal, rank) == (0, 1)
    assert grown_mib < 64


# What is stored ----------------------------------------------------------------------------------


def test_a_tied_tensor_that_is_stored_twice_counts_once(tmp_path: Path) -> None:
    ties, w = {"head": "embed"}, torch.arange(100.0).reshape(20, 5)
    twice = checkpoint(tmp_path / "twice", {"embed": w, "head": w, "norm": torch.ones(5)}, ties)
    once = checkpoint(tmp_path / "once", {"embed": w, "norm": torch.ones(5)}, ties)
    assert (twice.tied, once.tied) == (("head",), ())
    assert [one.name for one, _ in comparable(twice, once)] == ["embed", "norm"]
    assert sum(twice.dtypes().values()) == 105
    untied = checkpoint(tmp_path / "untied", {"embed": w, "head": w + 1, "norm": torch.ones(5)}, ties)
    assert untied.tied == ()


def test_a_single_file_goes_before_an_index(tmp_path: Path) -> None:
    checkpoint(tmp_path / "both", {"w": torch.zeros(2), "v": torch.zeros(2)})
    save_file({"w": torch.zeros(3)}, tmp_path / "both" / checkpoints.SINGLE)
    assert {n: t.shape for n, t in read_checkpoint("both", tmp_path / "both", {}).tensors.items()} == {"w": (3,)}


def test_what_cannot_be_compared_is_told_in_one_line(tmp_path: Path) -> None:
    w = torch.zeros(4, 3)
    base = checkpoint(tmp_path / "base", {"w": w, "v": w})
    cases = {
        "name": ({"w": w, "u": w}, r"different tensors: u is only in name, v is only in base;"),
        "shape": ({"w": w, "v": w.T}, r"different shapes: v is \[4, 3\] and \[3, 4\];"),
        "dtype": ({"w": w.bfloat16(), "v": w.bfloat16()}, r"different dtypes: v is F32 and BF16, w is F32 and BF16;"),
    }
    for name, (tensors, message) in cases.items():
        with pytest.raises(InputError, match=message):
            comparable(base, checkpoint(tmp_path / name, tensors))
    whole = checkpoint(tmp_path / "whole", {"w": w.to(torch.int8)})
    with pytest.raises(InputError, match="w is I8; only BF16, F16, F32, F64 can be compared"):
        comparable(whole, whole)
    many = checkpoint(tmp_path / "many", {f"w{i}": w for i in range(9)})
    with pytest.raises(InputError, match=r"v is only in base, w is only in base, w0 is only in many, and 8 more"):
        comparable(base, many)
    broken = checkpoint(tmp_path / "broken", {"w": w, "v": torch.full((4, 3), torch.nan)})
    with pytest.raises(AnalysisError, match=r"broken/a\.safetensors: v holds NaN or infinity"):
        [update(one, two) for one, two in comparable(base, broken)]


def test_files_that_are_not_there_or_not_safetensors_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^empty holds neither model.safetensors nor model.safetensors.index.json"):
        read_checkpoint("empty", tmp_path, {})
    (tmp_path / checkpoints.INDEX).write_text('{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}')
    with pytest.raises(InputError, match=r"a.safetensors, named in model.safetensors.index.json, does not exist \(2 "):
        read_checkpoint("torn", tmp_path, {})
    (tmp_path / checkpoints.INDEX).write_text("[]")
    with pytest.raises(InputError, match="is not an index of safetensors files"):
        read_checkpoint("torn", tmp_path, {})
    (tmp_path / checkpoints.SINGLE).write_bytes(b"not safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read as safetensors"):
        read_checkpoint("torn", tmp_path, {})
