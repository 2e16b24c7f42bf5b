"""Print what the Triton kernels compile to: registers, spills, and shared memory by ptxas. Needs no GPU.

    python -m steerdec.benchmarks.engine.compiled --vocab 151936 --json compiled.json

The kernels are those of a steered step on vLLM's V2 runner, and vLLM's own for temperature and min-p. Arguments are
specialized as Triton would at a launch: pointers and the stride of a row are divisible by 16. "Warps" is how many warps
registers and shared memory let run on one multiprocessor at once; 64 is the most there is.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

from rich.console import Console
from rich.table import Table

ARCHITECTURES: Final = (80, 90, 100)
VOCAB: Final = 151_936
# Of a multiprocessor with compute capability 8.0, 9.0, or 10.0.
_REGISTERS, _WARPS = 65_536, 64
_SHARED_BYTES: Final = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
_REGISTERS_AT_ONCE: Final = 256  # a warp gets them in such pieces

# Types of arguments that are not pointers to float32, by name; the kernels say so in comments.
_POINTERS: Final = {
    **dict.fromkeys(("slots", "ints", "keep_block", "table", "prompt_len", "prefill_len", "token_ids"), "*i32"),
    **dict.fromkeys(("lanes", "local_pos", "input_ids", "expanded_idx_mapping", "memory"), "*i32"),
    **dict.fromkeys(("positions", "pos", "history"), "*i64"),
    **dict.fromkeys(("in_scope", "selected"), "*u8"),
}
_INTEGERS: Final = ("row_stride", "token_stride", "lanes", "capacity_tokens", "logits_stride", "vocab_size")
_ALIGNED: Final = ("row_stride", "logits_stride", "vocab_size")


@dataclass(frozen=True)
class Kernel:
    """A kernel and its compile-time constants."""

    name: str
    function: Any
    constants: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def signature(self) -> dict[str, str]:
        """Return the type of each argument."""
        types = {}
        for name in self.function.arg_names:
            if name in self.constants:
                types[name] = "constexpr"
            elif name in _INTEGERS:
                types[name] = "i32"
            else:
                types[name] = _POINTERS.get(name.removesuffix("_ptr"), "*fp32")
        return types


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one architecture."""

    kernel: str
    architecture: str
    threads: int
    registers: int  # of a thread
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int  # of a program
    warps: int  # at once on a multiprocessor


def kernels(vocab: int) -> list[Kernel]:
    """Return the kernels of steering, in the order of a step."""
    from steerdec.kernels import triton, triton_step
    from steerdec.kernels.slots import SLOT_INTS, STEERED
    from steerdec.steering.memory import ring_entries

    sizes = {"VOCAB": vocab, "BLOCK": triton.BLOCK}
    with_slots = {"WIDTH": SLOT_INTS, "COLUMN": STEERED}
    ring = {"RING": ring_entries(0)}
    return [
        Kernel("measure", triton.measure, sizes | with_slots, triton.OPTIONS),
        Kernel("decide, a whole step", triton_step._decide_step, sizes | ring | {"memory_ptr": None}, triton.OPTIONS),
        Kernel("decide, with a memory", triton_step._decide_step, sizes | ring, triton.OPTIONS),
        Kernel("scale", triton.scale, sizes, triton.OPTIONS),
    ]


def kernels_of_vllm() -> list[Kernel]:
    """Return vLLM's kernels for temperature and min-p, with the blocks that it launches them with."""
    from triton.backends import backends

    # Where no backend is for this machine's device, vLLM hides Triton from its kernels when they are imported.
    with mock.patch.dict(backends, {"cpu": backends["nvidia"]}):
        from vllm.v1.worker.gpu.sample.gumbel import _temperature_kernel
        from vllm.v1.worker.gpu.sample.min_p import _min_p_kernel

    return [
        Kernel("vLLM's temperature", _temperature_kernel, {"BLOCK_SIZE": 8192}),
        Kernel("vLLM's min-p", _min_p_kernel, {"BLOCK_SIZE": 1024}),
    ]


def compiled(kernel: Kernel, capability: int) -> Any:
    """Return Triton's compiled kernel for compute capability `capability` / 10."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names, signature = kernel.function.arg_names, kernel.signature
    constants = {(names.index(name),): value for name, value in kernel.constants.items()}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in _ALIGNED]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned if names[i] not in kernel.constants}
    source = ASTSource(kernel.function, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=kernel.options)


def resources(kernel: Kernel, capability: int) -> Resources:
    """Compile, and let ptxas say what the kernel takes.

    Raises:
        subprocess.CalledProcessError: ptxas does not take what Triton made.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    made = compiled(kernel, capability)
    ptx = made.asm["ptx"]
    (architecture,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    threads = made.metadata.num_warps * 32
    registers = _number(r"Used (\d+) registers", report)
    shared = int(made.metadata.shared)
    return Resources(
        kernel=kernel.name,
        architecture=architecture,
        threads=threads,
        registers=registers,
        spill_bytes=_number(r"(\d+) bytes spill stores", report) + _number(r"(\d+) bytes spill loads", report),
        stack_bytes=_number(r"(\d+) bytes stack frame", report),
        shared_bytes=shared,
        warps=warps_at_once(registers, shared, threads // 32, capability),
    )


def warps_at_once(registers: int, shared_bytes: int, warps: int, capability: int) -> int:
    """Return how many warps of programs of `warps` warps fit on a multiprocessor."""
    of_a_warp = -(-registers * 32 // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    by_registers = _REGISTERS // of_a_warp // warps
    by_shared = _SHARED_BYTES[capability] // (shared_bytes + 1024)  # of which the driver takes 1 KiB
    return min(by_registers, by_shared, _WARPS // warps) * warps


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return 0 if found is None else int(found[1])


def table(found: Sequence[Resources]) -> Table:
    """Return the table to print."""
    shown = Table(box=None)
    for heading in ("kernel", "architecture", "threads", "registers", "spills, bytes", "stack", "shared", "warps"):
        shown.add_column(heading, no_wrap=True)
    for r in found:
        numbers = (r.threads, r.registers, r.spill_bytes, r.stack_bytes, r.shared_bytes, r.warps)
        shown.add_row(r.kernel, r.architecture, *map(str, numbers))
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerdec.benchmarks.engine.compiled", description=__doc__)
    parser.add_argument("--vocab", type=int, default=VOCAB)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    if options.vocab < 1:
        parser.error(f"--vocab is {options.vocab}; at least 1 is allowed")
    try:
        import triton
    except ImportError:
        sys.exit("compiled: triton is not installed: pip install triton")
    found = [
        resources(kernel, capability)
        for kernel in [*kernels(options.vocab), *kernels_of_vllm()]
        for capability in ARCHITECTURES
    ]
    console = Console(width=110)
    console.print(f"triton {triton.__version__}, {options.vocab:,} logits in a row", highlight=False)
    console.print(table(found))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
