"""Lanes of shared memory that carry what was done to each token from the worker to the front end.

A lane is the part of a file in shared memory that holds one generated sequence. The front end (our server, or an
offline engine) lends a lane and a generation number to a request, the worker writes one record per token, and the
front end reads them. Every record carries
the generation that it was written under, so the reader of a reused lane never takes another request's record for its
own: it sees a different number and reports "unknown".

No torch and no vLLM here: processes that should not import either share this file.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

SHARED_MEMORY: Final = Path("/dev/shm")
PREFIX: Final = "steerdec-"

# One record: H, T' (float32 bits), generation << FLAG_BITS | flags, the probed entropy (float32 bits). 16 bytes.
WORDS: Final = 4
ENTROPY, TEMPERATURE, TAG, PROBE = 0, 1, 2, 3
FLAG_BITS: Final = 2
FORK, STOPPED = 1, 2  # flags
MAX_GENERATION: Final = 2**29 - 1

# What an engine on a CPU needs of the same memory to start.
_LEFT_TO_VLLM_BYTES: Final = 161 * 2**20

# A lane whose request was aborted may still be written to by the step in flight. Generations already
# keep a reader from being fooled; the rest keeps the late write from hiding a new request's record.
REST_AFTER_ABORT_S: Final = 5.0


class LanesExhaustedError(RuntimeError):
    """Every lane is in use: the request must wait or run without telemetry."""


@dataclass(frozen=True)
class LaneFile:
    """The location of the lanes: int32 [lanes, capacity_tokens, WORDS] in the file `path`.

    The number of lanes follows from the file's size. This object goes into vLLM's configuration, whose hash names the
    folder of its compiled kernels: a number that changed from start to start would make every start compile again.
    """

    path: str
    capacity_tokens: int

    def open(self) -> NDArray[np.int32]:
        """Return the records, shared with every process that opened the same file.

        Raises:
            OSError: the file is gone, or holds no lane.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            lane_bytes = self.capacity_tokens * WORDS * 4
            lanes = os.fstat(fd).st_size // lane_bytes
            if lanes == 0:
                raise OSError(f"{self.path} holds no lane of {self.capacity_tokens} tokens")
            memory = mmap.mmap(fd, lanes * lane_bytes)
        finally:
            os.close(fd)
        return np.frombuffer(memory, np.int32).reshape(lanes, self.capacity_tokens, WORDS)


@contextlib.contextmanager
def created(
    capacity_tokens: int, max_lanes: int = 1024, max_bytes: int = 512 * 2**20, *, name: str | None = None
) -> Iterator[LaneFile]:
    """Yield a new lane file, readable by this user alone, and remove it at the end.

    With a `name` its path is the same at every start, unless another server has a file of that name. It has as many
    lanes as fit into `max_bytes`, half of the free shared memory, and what an engine leaves of it. The space is
    allocated now: running out of it later would kill the writing engine with SIGBUS.

    Raises:
        OSError: not even two lanes fit.
    """
    remove_stale()
    free = os.statvfs(SHARED_MEMORY)
    budget = min(max_bytes, budget_bytes(free.f_bavail * free.f_frsize))
    lanes = min(max_lanes, budget // (capacity_tokens * WORDS * 4))
    if lanes < 2:  # one to lend, one as the sink for records without a lane
        raise OSError(
            f"{SHARED_MEMORY} has {free.f_bavail * free.f_frsize / 2**20:.0f} MiB free, too little for one lane of "
            f"{capacity_tokens} tokens; enlarge it (docker: --shm-size) or lower --max-model-len"
        )
    fd, path = _locked_file(name)
    try:
        os.posix_fallocate(fd, 0, lanes * capacity_tokens * WORDS * 4)
        yield LaneFile(str(path), capacity_tokens)
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def budget_bytes(free_bytes: int) -> int:
    """Return how much of the free shared memory lanes may take: half, but nothing that vLLM needs."""
    half = free_bytes // 2
    return half if free_bytes < _LEFT_TO_VLLM_BYTES else min(half, free_bytes - _LEFT_TO_VLLM_BYTES)


def _locked_file(name: str | None) -> tuple[int, Path]:
    """Return a new file, locked while this process lives, which distinguishes it from a leftover."""
    names = [] if name is None else [f"{os.getuid()}-{name}", *(f"{os.getuid()}-{name}-{i}" for i in range(2, 10))]
    while True:
        path = SHARED_MEMORY / (PREFIX + (names.pop(0) if names else f"{os.getpid()}-{secrets.token_hex(8)}"))
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        # Between the two calls another start may have removed it as a leftover.
        if os.fstat(fd).st_nlink:
            return fd, path
        os.close(fd)


def remove_stale() -> None:
    """Remove this user's lane files whose server was killed."""
    for path in SHARED_MEMORY.glob(f"{PREFIX}*"):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or just removed
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except OSError:
            pass  # in use
        finally:
            os.close(fd)


@dataclass(frozen=True)
class Records:
    """One sequence's records, [tokens] each; NaN and False if nothing was recorded under its generation."""

    entropy_nats: NDArray[np.float32]
    temperature: NDArray[np.float32]
    fork: NDArray[np.bool_]
    probe_entropy_nats: NDArray[np.float32]
    stopped: NDArray[np.bool_]  # not steered, because the guard's cap was exceeded at it or before it


class Lane:
    """The lane of one sequence: written by the worker under (`index`, `generation`), read here."""

    __slots__ = ("_words", "generation", "index")

    def __init__(self, words: NDArray[np.int32], index: int, generation: int) -> None:
        self._words, self.index, self.generation = words, index, generation

    def read(self, start: int, stop: int) -> Records:
        """Return the records of tokens `start` to `stop` (exclusive) of the sequence."""
        words = np.zeros((stop - start, WORDS), np.int32)
        held = self._words[start:stop]
        words[: len(held)] = held
        ours = words[:, TAG] >> FLAG_BITS == self.generation
        entropy, temperature, probe = (words[:, c].view(np.float32).copy() for c in (ENTROPY, TEMPERATURE, PROBE))
        entropy[~ours] = temperature[~ours] = probe[~ours] = np.nan
        fork, stopped = ((words[:, TAG] & flag != 0) & ours for flag in (FORK, STOPPED))
        return Records(entropy, temperature, fork, probe, stopped)

    def recorded_tokens(self) -> int:
        """Return the number of tokens recorded without a gap from the first, for answers that do not state it."""
        ours = self._words[:, TAG] >> FLAG_BITS == self.generation
        return len(ours) if ours.all() else int(ours.argmin())


class LanePool:
    """The lanes of one front end, lent to requests and taken back. Not thread-safe: one event loop, or one thread.

    The servers of one launch share a file in equal parts. A record lock on byte i of the file stands for part i; the
    kernel drops it when the process ends.

    Raises:
        OSError: the file cannot be opened, or all `parts` are taken.
    """

    def __init__(self, file: LaneFile, parts: int = 1) -> None:
        self._words = file.open()
        # Record locks are lost when the process closes *any* descriptor of the file, so this one is opened
        # last, and stays open.
        self._fd = os.open(file.path, os.O_RDWR | os.O_CLOEXEC)
        self.count = (len(self._words) - 1) // parts  # the last lane is the recorder's sink
        first = self._claimed_part(parts) * self.count
        self._free = deque(range(first, first + self.count))
        self._resting: deque[tuple[int, float]] = deque()
        # Not from 0: a worker on another host opens a file of the same name there if that host has a server of its own,
        # and writes into its lanes. Under numbers of another start, these records are nobody's.
        self._generation = dict.fromkeys(self._free, secrets.randbelow(MAX_GENERATION))

    def _claimed_part(self, parts: int) -> int:
        for i in range(parts):
            with contextlib.suppress(OSError):
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, i)
                return i
        os.close(self._fd)
        raise OSError(
            f"all {parts} parts of the telemetry lanes are taken by other server processes; "
            "give their number as --api-server-count on the command line (a --config file is not looked into)"
        )

    @property
    def lent(self) -> int:
        """Return the number of lanes that requests hold now."""
        return self.count - len(self._free) - len(self._resting)

    @property
    def rest_s(self) -> float:
        """Return the seconds until the next resting lane is free; 0 if none rests."""
        return max(0.0, self._resting[0][1] - time.monotonic()) if self._resting else 0.0

    def lend(self, n: int) -> list[Lane]:
        """Return `n` lanes, the longest unused first.

        Raises:
            LanesExhaustedError: fewer than `n` are free.
        """
        while self._resting and self._resting[0][1] <= time.monotonic():
            self._free.append(self._resting.popleft()[0])
        if len(self._free) < n:
            raise LanesExhaustedError(f"{n} telemetry lanes requested, {len(self._free)} of {self.count} are free")
        indices = [self._free.popleft() for _ in range(n)]
        for index in indices:
            self._generation[index] = self._generation[index] % MAX_GENERATION + 1
        return [Lane(self._words[index], index, self._generation[index]) for index in indices]

    def take_back(self, lanes: list[Lane], *, aborted: bool) -> None:
        """End the loan. Call it only once the engine has finished or been told to abort the sequences."""
        for lane in lanes:
            if aborted:
                self._resting.append((lane.index, time.monotonic() + REST_AFTER_ABORT_S))
            else:
                self._free.append(lane.index)
