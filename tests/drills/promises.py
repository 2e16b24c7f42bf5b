"""What is promised for each fault; docs/faults.md has the same words."""

from __future__ import annotations

from typing import Final

PROMISES: Final = {
    "engine killed": "The server ends with a status other than 0 and leaves no process, so that a supervisor can start "
    "it again. A run against it waits about a minute for it to come back, else ends with status 1 and one line. No "
    "finished sample is lost; the same command continues.",
    "API process killed": "As with the engine.",
    "launcher killed": "As with the engine, except that its telemetry file stays in `/dev/shm` until the next start.",
    "disk full": "The run ends with status 1 and one line that names the file. Every sample that was finished is "
    "whole. With room again the same command continues.",
    "endpoint hung": "Its requests end with `--timeout`, it is left after eight failures, and its work moves to the "
    "other endpoints.",
    "clock jumps": "Nothing: only clocks that never jump are used to measure and to wait. (The date a run was begun "
    "is what the wall clock said.)",
    "slow clients": "Others are answered as if they were not there. A request that is not complete yet holds a "
    "connection and no telemetry lane; a stream that is not read is kept, and given back whole.",
    "10,000 idle connections": "Requests beside them are answered as before. What they held is free after they close. "
    "The limit is the number of open files (`ulimit -n`).",
}
