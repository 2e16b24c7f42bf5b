"""What steerdec uses of vLLM, and whether a given vLLM has it: `python -m tests.contract` for every version."""
