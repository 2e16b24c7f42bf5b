"""Every place that patches a library or relies on its private parts, each with its reason. Read it before an upgrade.

    admission_stack.py      the engine's configuration, from the call stack of vLLM's validate_params hook
    vllm_version.py         the distribution name that vLLM's command asks for
    uvicorn_headers.py      the HTTP protocol that uvicorn picks by itself
    prometheus_buckets.py   a histogram's buckets, to count many values in one call

What is public in vLLM but may move is in tests/contract/table.py, beside what these rely on.
"""
