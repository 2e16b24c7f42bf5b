"""What is promised for each fault; docs/faults.md has the same words."""

from __future__ import annotations

from typing import Final

PROMISES: Final = {
    "engine killed": "The server ends with a status other than 0 and leaves no process, so a supervisor can start it "
    "again. A run against it waits about a minute for it to come back, then ends with status 1 and one "
    "line. No finished sample is lost, and the same command resumes the run.",
    "API process killed": "As for the engine.",
    "launcher killed": "As for the engine, except that its telemetry file stays in `/dev/shm` until the next start.",
    "starts and stops": "After 20 starts, each ended in one of several ways (SIGTERM, SIGINT, SIGHUP, kill -9 of the "
    "launcher, the API process, or the engine; some while loading), no process, port, shared memory, or "
    "temporary file is left.",
    "disk full": "The run ends with status 1 and one line that names the file. Every finished sample is whole. When "
    "there is space again, the same command resumes the run.",
    "endpoint hangs": "Its requests end with `--timeout`, the endpoint is retired after eight failures, and its "
    "work moves to the other endpoints.",
    "clock jumps": "Nothing happens: waiting and measuring use only clocks that never jump. (The date in a run is from "
    "the wall clock.)",
    "slow clients": "Other clients do not notice them. A request that is still incomplete holds a connection but no "
    "telemetry lane. A stream that its client does not read is kept, and delivered whole.",
    "10,000 idle connections": "Other requests are answered as before. What the connections held is free after "
    "they close. The limit is the number of open files (`ulimit -n`).",
}
