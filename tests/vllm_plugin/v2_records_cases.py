"""Telemetry of vLLM's whole V2 engine: 100,000 records of mixed requests, a third of which are aborted.

Run by test_v2_sampler.py in a process of its own, in Triton's interpreter. Every record is compared with what the
reference makes of the row of logits that the token was drawn from. `RECORDS=1000` is a shorter form.
"""

from __future__ import annotations

from tests.support import v2_engine  # before triton and vLLM

# isort: split
import os
from pathlib import Path

import pytest

from steerdec.telemetry import lanes as telemetry
from tests.support.v2_episodes import SAMPLINGS, crowded, episode

QUICK = [sampling for sampling in SAMPLINGS if not {"top_k", "top_p"} & set(sampling)]  # these take most of the time
RECORDS = int(os.environ.get("RECORDS", "100000"))


@pytest.mark.thorough
def test_no_record_is_wrong_where_requests_are_aborted(tmp_path: Path) -> None:
    with telemetry.created(v2_engine.CAPACITY, max_lanes=1025) as file:
        engine = crowded(tmp_path / "model", file, at_once=128)
        done = episode(engine, seed=5, tokens=RECORDS, most_tokens=100, samplings=QUICK)
    print(
        f"{done.requests:,} requests, {done.aborted:,} aborted, {done.preempted:,} preemptions; "
        f"{engine.rows:,} rows of logits, {engine.wrong_rows} wrong; {done.tokens:,} records, {len(done.wrong)} wrong",
        flush=True,
    )
    assert engine.wrong_rows == 0
    assert done.wrong == []
    assert done.tokens >= RECORDS
    assert done.preempted > 0
    assert done.aborted > 0.25 * done.requests
