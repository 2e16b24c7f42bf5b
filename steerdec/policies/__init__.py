"""One folder per policy: what it does at a fork, in one place.

    fields.py       what a request may set (pydantic), and the numbers that these become
    reference.py    `steered`, the specification, in plain float64 torch
    cpu.py          `steered`, compiled by numba
    triton.py       `steered`, compiled by Triton

A new policy is such a folder and one line in `registry.py`; another distribution names its class under the entry-point
group `steerdec.policies` instead. Everything else (kernels, admission, the benchmark's arms) finds it there.
"""
