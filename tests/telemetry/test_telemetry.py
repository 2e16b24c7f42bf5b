"""Lanes: records never cross from one request to another, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from steerdec.kernels.reference import Outcome
from steerdec.telemetry import lanes as telemetry
from steerdec.telemetry.lanes import LanePool, LanesExhaustedError
from steerdec.vllm_plugin.recorder import Recorder


def write(recorder: Recorder, lane: telemetry.Lane, position: int, h: float, t: float, fork: bool) -> None:
    outcome = Outcome(torch.tensor([h]), torch.tensor([fork]), torch.tensor([t]), torch.tensor([h / 2]))
    recorder.write(torch.tensor([lane.index]), torch.tensor([lane.generation]), torch.tensor([position]), outcome)


def test_records_come_back_as_written() -> None:
    with telemetry.created(8, max_lanes=3) as file:
        pool, recorder = LanePool(file), Recorder.open(file, torch.device("cpu"))
        assert recorder is not None
        (lane,) = pool.lend(1)
        write(recorder, lane, 0, 0.25, 1.5, True)
        write(recorder, lane, 1, float("nan"), 0.0, False)
        write(recorder, lane, 0, 0.5, 0.7, False)  # a resumed request: the last write wins
        records = lane.read(0, 3)
        assert records.entropy_nats.tolist()[:1] == [0.5]
        assert np.isnan(records.entropy_nats[1:]).all()
        assert records.fork.tolist() == [False, False, False]
        assert records.temperature[:2].tolist() == [np.float32(0.7), 0.0]
        assert lane.recorded_tokens() == 2


def test_a_lane_is_never_read_by_another_request() -> None:
    """10^5 loans, each with a late write of the previous borrower: no reader ever sees it."""
    rng = np.random.default_rng(0)
    with telemetry.created(4, max_lanes=9) as file:
        pool, recorder = LanePool(file), Recorder.open(file, torch.device("cpu"))
        assert recorder is not None
        words = file.open()
        previous: list[telemetry.Lane] = []
        for loan in range(100_000):
            (lane,) = pool.lend(1)
            tokens = int(rng.integers(0, 4))
            words[lane.index, :tokens] = [loan, 0, lane.generation << telemetry.FLAG_BITS | 1, 0]
            if previous and rng.random() < 0.5:
                late = previous[int(rng.integers(len(previous)))]
                words[late.index, int(rng.integers(4))] = [-1, -1, late.generation << telemetry.FLAG_BITS | 1, -1]
            records = lane.read(0, 4)
            own = records.fork
            assert (records.entropy_nats.view(np.int32)[own] == loan).all()
            assert np.isnan(records.entropy_nats[~own]).all()
            previous = [*previous[-6:], lane]
            pool.take_back([lane], aborted=False)
        assert pool.lent == 0


def test_records_of_another_server_are_never_taken_for_our_own() -> None:
    """As if a worker of a server on another host had opened the file that has the same name here."""
    with telemetry.created(4, max_lanes=3) as file, telemetry.created(4, max_lanes=3) as elsewhere:
        (ours,), (theirs,) = LanePool(file).lend(1), LanePool(elsewhere).lend(1)
        assert ours.index == theirs.index
        recorder = Recorder.open(file, torch.device("cpu"))
        assert recorder is not None
        write(recorder, theirs, 0, 1.0, 1.0, True)
        assert np.isnan(ours.read(0, 4).entropy_nats).all()
        assert ours.recorded_tokens() == 0


def test_aborted_lanes_rest_before_they_are_lent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(telemetry.time, "monotonic", lambda: now)
    with telemetry.created(4, max_lanes=3) as file:
        pool = LanePool(file)
        lanes = pool.lend(2)
        with pytest.raises(LanesExhaustedError, match="1 telemetry lanes requested, 0 of 2 are free"):
            pool.lend(1)
        pool.take_back(lanes[:1], aborted=True)
        with pytest.raises(LanesExhaustedError):
            pool.lend(1)
        now += telemetry.REST_AFTER_ABORT_S
        assert pool.lend(1)[0].index == lanes[0].index


def test_positions_outside_a_lane_are_dropped() -> None:
    with telemetry.created(4, max_lanes=4) as file:
        pool, recorder = LanePool(file), Recorder.open(file, torch.device("cpu"))
        assert recorder is not None
        first, second = pool.lend(2)
        for position in (-1, 4, 400):
            write(recorder, first, position, 1.0, 1.0, True)
        for index in (-1, 10**6):  # no lane at all
            write(recorder, telemetry.Lane(file.open()[0], index, first.generation), 0, 1.0, 1.0, True)
        assert not first.read(0, 4).fork.any()
        assert not second.read(0, 4).fork.any()


def test_the_file_is_the_users_alone_and_goes_with_its_server() -> None:
    with telemetry.created(16) as file:
        path = Path(file.path)
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_blocks * 512 >= file.open().nbytes, "space must be taken at once, not on first write"
        telemetry.remove_stale()
        assert path.exists(), "a file in use must stay"
    assert not path.exists()


def test_a_named_file_has_the_same_path_at_every_start_unless_another_server_has_it() -> None:
    """The path is in vLLM's configuration, whose hash names the folder of its compiled kernels."""
    with telemetry.created(16, name="test") as first:
        with telemetry.created(16, name="test", max_lanes=7) as second:
            assert second.path != first.path
        assert Path(first.path).exists()
    with telemetry.created(16, name="test", max_lanes=7) as again:
        assert again == first, "nor does the number of lanes show, which depends on the free memory"
        assert len(again.open()) == 7


def test_what_a_killed_server_left_is_removed_at_the_next_start() -> None:
    code = (
        "import time\nfrom steerdec.telemetry import lanes as telemetry\n"
        "with telemetry.created(16) as f:\n  print(f.path, flush=True)\n  time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert path.exists()
    with telemetry.created(16):
        assert not path.exists()


def test_server_processes_share_the_lanes_without_overlap() -> None:
    with telemetry.created(4, max_lanes=10) as file:
        code = (
            "import sys\nfrom steerdec.telemetry.lanes import LaneFile, LanePool\n"
            f"pool = LanePool(LaneFile({file.path!r}, 4), parts=3)\n"
            "print(*sorted(lane.index for lane in pool.lend(pool.count)), flush=True)\nsys.stdin.read()"
        )
        command = [sys.executable, "-c", code]
        processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
        ]
        parts = [list(map(int, p.stdout.readline().split())) for p in processes if p.stdout]
        assert sorted(i for part in parts for i in part) == list(range(9))
        refused = subprocess.run(command, input="", capture_output=True, text=True, check=False)
        assert "all 3 parts" in refused.stderr
        assert "--api-server-count" in refused.stderr
        for process in processes:
            process.communicate("")


def test_too_little_shared_memory_is_said_before_anything_starts() -> None:
    with pytest.raises(OSError, match="too little for one lane of 1000000000000 tokens"), telemetry.created(10**12):
        pass


@pytest.mark.parametrize("free_mib", [8, 64, 160, 162, 200, 320, 322, 400, 1000, 10_000])
def test_lanes_leave_an_engine_what_it_needs_to_start(free_mib: int) -> None:
    """160 MiB on a CPU; where there is less, only engines start that need none of it."""
    free = free_mib * 2**20
    budget = telemetry.budget_bytes(free)
    assert 0 < budget <= free // 2
    if free_mib > 161:
        assert free - budget >= 160 * 2**20
