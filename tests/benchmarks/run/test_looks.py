"""Planned looks: arms that nothing needs are dropped, stopped runs come to the same, and runs can be extended."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from steerdec.benchmarks.report import sentences
from steerdec.benchmarks.report.write import write_report
from steerdec.benchmarks.run import looks, session
from steerdec.benchmarks.run.endpoint_health import Retry
from steerdec.benchmarks.run.targets import Target
from steerdec.benchmarks.verdicts.summary import summarize
from steerdec.common.errors import InvalidInputError
from steerdec.problems.sets import Problem
from steerdec.records.run import SettingsError
from tests.support.scripted_endpoint import Body, Script, ScriptedEndpoint

RETRY = Retry(attempts=2, endpoint_failures=3, first_pause_s=0.02, longest_pause_s=0.05)
PROBLEMS = {f"What is {i} plus {i * 7}?": str(i * 8) for i in range(1, 21)}
ARMS = [
    {"name": "B", "role": "baseline"},
    {"name": "down", "role": "treatment", "steering": {"fork_temperature": "x0.5"}},
    {"name": "same", "role": "treatment", "steering": {"fork_temperature": "x1.1"}},
]
CLAIMS = [
    {"id": "lowers", "statement": "Lowering lowers.", "arm": "down", "baseline": "B", "direction": "lower"},
    {"id": "raises", "statement": "Raising raises.", "arm": "same", "baseline": "B", "direction": "higher"},
]
FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)


def chance(problem: str, body: Body) -> float:
    """`down` is never right, `same` a little more often than B, which no look of this size can tell."""
    fork = (body.get("steering") or {}).get("fork_temperature")
    return {None: 0.6, 0.3: 0.0, 0.66: 0.68}[fork]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    problems, arms = tmp_path / "problems.jsonl", tmp_path / "arms.yaml"
    lines = [{"id": f"p{i}", "problem": text, "answer": a} for i, (text, a) in enumerate(PROBLEMS.items())]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_arms(arms, ARMS, CLAIMS)
    return problems, arms


def write_arms(path: Path, arms: list[Any], claims: list[Any]) -> None:
    arm_set = {"name": "mine", "baseline": "B", "temperature": 0.6, "delta": 0.01, "arms": arms, "claims": claims}
    path.write_text(json.dumps(arm_set))


def make(
    files: tuple[Path, Path], url: str, folder: Path, samples: int = 16, retry: Retry = RETRY, **more: Any
) -> session.Finished:
    request = session.read_request(
        str(files[0]),
        str(files[1]),
        prompt=None,
        thinking=None,
        samples=samples,
        seed=1,
        temperature=None,
        max_tokens=64,
        threshold=None,
        force=False,
        **({"look_fractions": FRACTIONS, "limit": None} | more),
    )
    target = Target(endpoints=(url,), model=None, dtype=None, concurrency=16, timeout_s=60.0, api_key=None)
    return session.run(request, target, folder, retry)


def counts(folder: Path) -> dict[str, int]:
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return dict(Counter(json.loads(line)["arm"] for line in lines))


def test_an_arm_whose_claims_are_decided_is_dropped_at_a_planned_look(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        finished = make(files, server.url, tmp_path / "run")
    have = counts(tmp_path / "run")
    assert have["B"] > have["down"]
    assert have["down"] in (2 * 20, 4 * 20, 8 * 20)
    assert finished == session.Finished(sum(have.values()), 0)
    said = capsys.readouterr().err
    assert f"look at {have['down'] // 20} of 16 samples: down no longer needed" in said
    assert "holds" not in said, "a look says which arms are dropped, not what came out"
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["looks"] == [{"samples": n, "planned": 16} for n in (2, 4, 8, 16)]


def test_a_finished_run_is_not_interim_though_an_arm_was_dropped(files: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        make(files, server.url, folder, samples=8)
    summary = summarize(folder)
    report = write_report(folder, summary)
    early, late = summary.arms["down"], summary.arms["B"]
    assert early.k < late.k
    for arm in summary.arms.values():
        assert (arm.missing, arm.not_needed) == (0, 8 * 20 - arm.samples)
    dropped = sentences.dropped_sentence(summary)
    assert dropped is not None
    assert dropped.startswith("Not sampled to the end, as no claim needed more samples of them: down after ")
    assert sentences.interim_sentence(summary) is None
    for text in (report.read_text(), (folder / "report.md").read_text()):
        assert 'class="interim"' not in text
        assert "Interim" not in text
        assert "up to 8 samples each" in text
        assert dropped in text
    # Stopped before that it is interim, and what is still to be made is of the other arms alone.
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join(line for line in lines if json.loads(line)["sample"] < early.k))
    stopped = summarize(folder)
    assert stopped.interim
    assert [stopped.arms[name].missing for name in ("down", "B")] == [0, (8 - early.k) * 20]


def test_looks_at_the_end_only_sample_everything(files: tuple[Path, Path], tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        make(files, server.url, tmp_path / "run", look_fractions=(1.0,))
    assert set(counts(tmp_path / "run").values()) == {16 * 20}


def test_a_run_stopped_anywhere_comes_to_the_same_samples(files: tuple[Path, Path], tmp_path: Path) -> None:
    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        make(files, server.url, tmp_path / "whole")
        make(files, server.url, tmp_path / "stopped")
        path = tmp_path / "stopped" / "samples.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        for keep in (30, 150, len(lines) - 5):
            path.write_text("".join(lines[:keep]))
            make(files, server.url, tmp_path / "stopped")
            assert counts(tmp_path / "stopped") == counts(tmp_path / "whole")
        asked = len(server.bodies)
        make(files, server.url, tmp_path / "stopped")
        assert len(server.bodies) == asked, "a decided run asks for nothing more"


def test_a_run_is_extended_by_samples_and_arms_only_on_request(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        make(files, server.url, folder, samples=4, look_fractions=(1.0,))
        before = (folder / "samples.jsonl").read_text()
        with pytest.raises(SettingsError, match=r"holds a smaller run: samples: 4 -> 6; --extend"):
            make(files, server.url, folder, samples=6, look_fractions=(1.0,))
        with pytest.raises(SettingsError, match="samples: 4 -> 3"):
            make(files, server.url, folder, samples=3, look_fractions=(1.0,), extend=True)
        capsys.readouterr()
        make(files, server.url, folder, samples=6, look_fractions=(1.0,), extend=True)
        assert "verdicts stay as they are" in capsys.readouterr().err
        assert (folder / "samples.jsonl").read_text().startswith(before)
        assert set(counts(folder).values()) == {6 * 20}
        run = json.loads((folder / "run.json").read_text())
        assert run["looks"] == [{"samples": 4, "planned": 4}, {"samples": 6, "planned": 6}]
        make(files, server.url, folder, samples=6)
        assert "looks stay as planned before: after 4, 6 samples" in capsys.readouterr().err

        more = {"name": "B-other", "role": "replica"}
        write_arms(files[1], [*ARMS, more], CLAIMS)
        make(files, server.url, folder, samples=6, look_fractions=(1.0,), extend=True)
        assert counts(folder) == {"B": 120, "down": 120, "same": 120, "B-other": 120}
        write_arms(files[1], [ARMS[0], ARMS[1], more], CLAIMS[:1])
        with pytest.raises(SettingsError, match="same"):
            make(files, server.url, folder, samples=6, look_fractions=(1.0,), extend=True)
        changed = {**ARMS[1], "steering": {"fork_temperature": "x0.4"}}
        write_arms(files[1], [ARMS[0], changed, ARMS[2], more], CLAIMS)
        with pytest.raises(SettingsError, match="fork_temperature"):
            make(files, server.url, folder, samples=6, look_fractions=(1.0,), extend=True)


def write_problems(path: Path, numbers: list[int], **changed: str) -> None:
    """Write the problems of these numbers, in this order; `changed` has other answers by id."""
    texts = list(PROBLEMS)
    lines = [{"id": f"p{i}", "problem": texts[i], "answer": changed.get(f"p{i}", PROBLEMS[texts[i]])} for i in numbers]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_is_extended_by_problems(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, old = tmp_path / "run", list(range(12))
    write_problems(files[0], old)
    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        make(files, server.url, folder, samples=2, look_fractions=(1.0,))
        before = (folder / "samples.jsonl").read_text()
        write_problems(files[0], [15, *reversed(old), 13])
        with pytest.raises(SettingsError, match=r"holds a smaller run: problems.*; --extend"):
            make(files, server.url, folder, samples=2)
        capsys.readouterr()
        make(files, server.url, folder, samples=2, extend=True)
        said = capsys.readouterr().err
        assert "12 -> 14 problems, 2 -> 2 samples" in said
        assert "verdicts stay as they are" in said
        assert (folder / "samples.jsonl").read_text().startswith(before)
        run = json.loads((folder / "run.json").read_text())
        assert run["problems"]["ids"] == [f"p{i}" for i in (*old, 15, 13)]
        assert run["problems"]["n"] == len(run["problems"]["hashes"]) == 14
        assert run["looks"] == [{"samples": 2, "planned": 2, "problems": 12}, {"samples": 2, "planned": 2}]
        assert set(counts(folder).values()) == {2 * 14}
        asked = len(server.bodies)
        make(files, server.url, folder, samples=2)
        assert len(server.bodies) == asked, "the same command, with or without --extend, finds a whole run"
        make(files, server.url, folder, samples=3, extend=True)
        looks = json.loads((folder / "run.json").read_text())["looks"]
        assert looks == [*run["looks"], {"samples": 3, "planned": 3}]


@pytest.mark.parametrize(
    ("numbers", "changed", "words"),
    [
        ([*range(1, 15)], {}, 'lacks problem "p0" of the run'),
        ([*range(2, 15)], {}, r'lacks problem "p0" \(and 1 more\) of the run'),
        ([*range(15)], {"p3": "7"}, 'another text, answer or group of problem "p3" than in the run'),
        ([*range(12)], {"p3": "7"}, "under other settings: problems.sha256"),
    ],
)
def test_problems_that_are_not_those_of_the_run_are_refused(
    files: tuple[Path, Path], tmp_path: Path, numbers: list[int], changed: dict[str, str], words: str
) -> None:
    folder = tmp_path / "run"
    write_problems(files[0], list(range(12)))
    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        make(files, server.url, folder, samples=1, look_fractions=(1.0,))
        kept = [(folder / name).read_text() for name in ("run.json", "samples.jsonl")]
        write_problems(files[0], numbers, **changed)
        with pytest.raises(SettingsError, match=words) as e:
            make(files, server.url, folder, samples=1, extend=True)
        assert "\n" not in str(e.value)
        assert [(folder / name).read_text() for name in ("run.json", "samples.jsonl")] == kept
        # A run.json from before problems had hashes of their own knows the hash of the set.
        settings = json.loads(kept[0])
        del settings["problems"]["hashes"]
        (folder / "run.json").write_text(json.dumps(settings))
        if "p3" in words:
            with pytest.raises(SettingsError, match="has other texts, answers or groups of the same problems"):
                make(files, server.url, folder, samples=1, extend=True)


def test_a_stopped_run_takes_more_problems_and_keeps_the_looks_it_made(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    """A larger --limit draws the same problems and more. The looks made stay at the old ones, as judged then."""
    folder = tmp_path / "run"
    with ScriptedEndpoint(Script(PROBLEMS, chance)) as server:
        make(files, server.url, folder, samples=8, limit=12)
        path = folder / "samples.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if json.loads(line)["sample"] < 3))
        make(files, server.url, folder, samples=8, limit=18, extend=True)
        run = json.loads((folder / "run.json").read_text())
        have, asked = counts(folder), len(server.bodies)
        make(files, server.url, folder, samples=8, limit=18)
        assert len(server.bodies) == asked
    assert (run["problems"]["limit"], run["problems"]["n"]) == (18, 18)
    assert run["looks"] == [
        {"samples": 1, "planned": 8, "problems": 12},
        {"samples": 2, "planned": 8, "problems": 12},
        {"samples": 2, "planned": 8},
        {"samples": 4, "planned": 8},
        {"samples": 8, "planned": 8},
    ]
    assert have["B"] == 8 * 18
    made = summarize(folder).looks
    assert [look.problems for look in made] == [12, 12, 18, 18, 18]
    assert all(look.made for look in made)


@pytest.mark.parametrize(
    "text", ["", "0", "1.5", "1/0", "a", "-1/2", "1/2;1", "nan", "1e999999999", "1/8,", "\u0661/\u0662"]
)
def test_looks_that_cannot_be_made_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--looks"):
        looks.parse_fractions(text)
    assert looks.parse_fractions("1/8, 0.25,1") == (0.125, 0.25, 1.0)


def test_problems_too_few_for_a_verdict_are_looked_at_once() -> None:
    def numbers(problems: list[Problem]) -> list[int]:
        return [look.samples for look in looks.plan_run_looks(16, FRACTIONS, problems)]

    problems = [Problem(id=f"p{i}", problem=f"{i}?", answer="1") for i in range(10)]
    assert numbers(problems) == [2, 4, 8, 16]
    assert numbers(problems[:9]) == [16]
    assert numbers([replace(problem, group="the same") for problem in problems]) == [16]
