"""One folder per policy, with everything it does at a fork.

    fields.py       the fields of a request (pydantic), and the numbers that they become
    reference.py    `steered`, the specification, in plain float64 torch
    cpu.py          `steered`, compiled by numba
    triton.py       `steered`, compiled by Triton

A new policy is such a folder and one line in `registry.py`; another distribution registers its class under the
entry-point group `steerdec.policies` instead. Everything else (kernels, admission, the benchmark's arms) finds it
there.
"""
