"""`make phantom`'s own check against a real server: it passes, and each of six planted defects makes it fail.

One server, of a copy of the package whose kernel and recorder apply the defect that a file names. The checking process
is not changed.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from steerdec.benchmarks.run.local_server import local_server
from steerdec.phantom import check
from steerdec.phantom.folder import write_phantom
from steerdec.phantom.kinds import KINDS

ROOT = Path(__file__).parents[2]
KIND = "claim-true"
ARMS = "B,A/A,F-up,F-down,N-up,P-up"
DEFECTIVE_KERNEL = """

_right_steer_ = steer_


def steer_(logits, floats, ints, *rest, **named):
    import pathlib

    from steerdec.policies.split.fields import FORK_FACTOR, FORK_T

    defect = pathlib.Path({file!r}).read_text()
    floats = floats.clone()
    if defect.startswith("threshold"):
        floats[:, encoding.THRESHOLD] += float(defect.split()[1])
    elif defect == "inverted":
        for column in (FORK_FACTOR, encoding.OTHER_FACTOR):
            floats[:, column] = 1.0 / floats[:, column]
    elif defect.endswith("swapped"):
        pairs = [(FORK_FACTOR, encoding.OTHER_FACTOR)] + [(FORK_T, encoding.OTHER_T)] * (defect == "swapped")
        for one, other in pairs:
            floats[:, [one, other]] = floats[:, [other, one]]
    return _right_steer_(logits, floats, ints, *rest, **named)
"""
DEFECTIVE_RECORDER = """

_right_write = Recorder.write


def _write(self, lane, generation, position, outcome):
    import pathlib

    if pathlib.Path({file!r}).read_text() != "shifted":
        return _right_write(self, lane, generation, position, outcome)
    _right_write(self, torch.where(position == 0, lane, -1), generation, position, outcome)
    return _right_write(self, lane, generation, position + 1, outcome)


Recorder.write = _write
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("defects")
    (folder / "defect").write_text("none")
    write_phantom(KINDS[KIND], folder / "phantom")
    return folder


@pytest.fixture(scope="module")
def defective_url(work: Path) -> Iterator[str]:
    package = work / "package" / "steerdec"
    shutil.copytree(ROOT / "steerdec", package, ignore=shutil.ignore_patterns("__pycache__"))
    for module, text in (("kernels/dispatch.py", DEFECTIVE_KERNEL), ("vllm_plugin/recorder.py", DEFECTIVE_RECORDER)):
        with (package / module).open("a") as file:
            file.write(text.format(file=str(work / "defect")))
    # The working directory, which `python -m` looks into first, has the package without defects.
    environment = {"PYTHONPATH": str(package.parent), "PYTHONSAFEPATH": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with local_server(str(work / "phantom"), work / "log", environment=environment, start_timeout_s=580) as url:
        yield url


def thorough(defect: str, numbers: list[str]) -> object:
    return pytest.param(defect, numbers, marks=pytest.mark.thorough)


def checked(work: Path, url: str, defect: str) -> int:
    (work / "defect").write_text(defect)
    out = work / defect.replace(" ", "")
    (out / KIND).mkdir(parents=True)
    (out / KIND / "phantom").symlink_to(work / "phantom")
    options = ["--kinds", KIND, "--arms", ARMS, "--limit", "20", "--samples", "2", "--calibrate", "none"]
    return check.main([*options, "--no-analyses", "--endpoint", url, "--out", str(out)])


@pytest.mark.engine
@pytest.mark.timeout(1200)
def test_without_a_defect_every_number_is_right(
    work: Path, defective_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = checked(work, defective_url, "none")
    captured = capsys.readouterr()
    assert status == 0, captured
    assert "all correct" in captured.out


@pytest.mark.engine
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("defect", "numbers"),
    [
        thorough("threshold 0.05", ["forks per response", "forks per token"]),
        ("inverted", ["avg@k", "draws by state"]),
        ("shifted", ["entropy per token"]),
        thorough("threshold -0.05", ["forks per response", "forks per token"]),
        thorough("swapped", ["measuring: steerdec bench ended with status 1"]),  # `bench run` refuses such a server
        thorough("factors swapped", ["avg@k"]),
    ],
)
def test_a_defect_is_named(
    defect: str, numbers: list[str], work: Path, defective_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = checked(work, defective_url, defect)
    told = capsys.readouterr().err
    assert status == 1
    for number in numbers:
        assert f"{KIND}: {number}" in told, told
