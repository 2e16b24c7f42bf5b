"""The reason for a failed start, found in what vLLM prints; the texts are vLLM's own, from real failures."""

from __future__ import annotations

import pytest

from steerdec.server.launch.reason import LastError

CONTEXT = """\
(APIServer pid=7) INFO 11-29 01:00:00 [utils.py:299] non-default args: {}
(APIServer pid=7) Traceback (most recent call last):
(APIServer pid=7)   File "vllm/config.py", line 1, in f
(APIServer pid=7) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
(APIServer pid=7)   Value error, User-specified max_model_len (4096) is greater than the derived max_model_len (1024). \
To allow it, set the env var. [type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]
(APIServer pid=7)     For further information visit https://errors.pydantic.dev/2.12/v/value_error
"""
ENGINE = """\
(EngineCore pid=9) ERROR 11-29 01:00:00 [core.py:1146] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-29 01:00:00 [core.py:1146] Traceback (most recent call last):
(EngineCore pid=9) ERROR 11-29 01:00:00 [core.py:1146]   File "x.py", line 3, in run
(EngineCore pid=9) ERROR 11-29 01:00:00 [core.py:1146] ValueError: No available memory for the cache blocks.
(EngineCore pid=9) Process EngineCore:
(EngineCore pid=9) Traceback (most recent call last):
(EngineCore pid=9) ValueError: No available memory for the cache blocks.
(APIServer pid=7) Traceback (most recent call last):
(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
USAGE = """\
usage: vllm serve [model_tag] [options]
vllm serve: error: unrecognized arguments: --no-such-flag
"""
KILLED = """\
(APIServer pid=7) ERROR 11-29 01:00:00 [core_client.py:600] Engine core proc EngineCore died unexpectedly.
(APIServer pid=7) ERROR 11-29 01:00:00 [async_llm.py:1] vllm.v1.engine.exceptions.EngineDeadError: EngineCore \
encountered an issue. See stack trace (above) for the root cause.
"""
MISSING = "\x1b[0;36m(APIServer pid=7)\x1b[0;0m ModuleNotFoundError: No module named 'my'\n"


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        (
            CONTEXT,
            "User-specified max_model_len (4096) is greater than the derived max_model_len (1024). "
            "To allow it, set the env var.",
        ),
        (ENGINE, "No available memory for the cache blocks."),
        (USAGE, "unrecognized arguments: --no-such-flag"),
        (KILLED, "Engine core proc EngineCore died unexpectedly."),
        (MISSING, "ModuleNotFoundError: No module named 'my'"),
        ("INFO 11-29 01:00:00 [a.py:1] all is well\n", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_last_error_of_its_own_is_the_reason(printed: str, reason: str | None, size: int) -> None:
    last = LastError()
    data = printed.encode()
    for i in range(0, len(data), size):
        last.feed(2, data[i : i + size])
        last.feed(1, b"INFO 11-29 01:00:00 [a.py:1] beside it\n")
    assert last.reason() == reason


def test_lines_without_end_take_no_memory() -> None:
    last = LastError()
    for _ in range(1000):
        last.feed(1, b"x" * 65536)
    last.feed(1, b"\nValueError: " + b"y" * 5000 + b"\n")
    assert last.reason() == "y" * 600
