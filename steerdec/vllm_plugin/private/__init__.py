"""Every place that patches a library or relies on its private parts, with its reason. Read it before an upgrade.

    admission_stack.py      the engine's configuration, from the call stack of vLLM's validate_params hook
    vllm_version.py         the distribution name that vLLM's command looks up
    uvicorn_headers.py      the HTTP protocol that uvicorn chooses
    prometheus_buckets.py   a histogram's buckets, to count many values in one call

tests/contract/table.py lists the names that are public in vLLM but may move, and those that these files use.
"""
