"""One folder per policy, with everything it does at a fork.

    fields.py       the fields of a request (pydantic), and the numbers that they become
    reference.py    `steered`, the specification, in plain float64 torch; it returns a `Steered`
    cpu.py          `steered`, compiled by numba; it returns T', the factor T / T', and the floor
    triton.py       `steered`, compiled by Triton; it returns the same three

The floor is the smallest logit that is kept; a policy that keeps all tokens returns minus infinity.

A new policy is such a folder and one line in `registry.py`; another distribution registers its class under the
entry-point group `steerdec.policies` instead. Everything else (kernels, admission, the benchmark's arms) finds it
there.
"""
