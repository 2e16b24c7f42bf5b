"""`steerdec lenses` from end to end on a tiny random model: page, JSON, stop and go on, bad input."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from steerdec.analysis.lenses import matrix as lens_matrix
from steerdec.analysis.lenses import page as lens_page
from steerdec.analysis.lenses import report as lens_report
from steerdec.analysis.lenses import run as looking
from steerdec.analysis.lenses import trace as lens_trace
from steerdec.analysis.lenses.trace import LensSettings
from steerdec.analysis.traces.endings import ending, reasoning
from steerdec.analysis.traces.source import Resolved, Source
from steerdec.common.errors import AnalysisError, InputError
from tests.page.browser import start_chrome
from tests.support.tiny_lm import tiny_lm

SETTINGS = LensSettings(greedy_tokens=0, gap_sentences=1, again_every=2)
ASKED = {"samples": 4, "max_tokens": 40, "prompt": "number"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("problems"), [str(2 * i + 1) for i in range(5)])


def written(folder: Path, answers: list[str]) -> Path:
    lines = [{"id": f"p{i}", "problem": f"Add {i} and {i + 1}.", "answer": a} for i, a in enumerate(answers)]
    path = folder / "some.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def resolved(model: Path, problems: Path, **asked: Any) -> Resolved:
    return looking.resolve(Source(model=str(model), problems=str(problems), **(ASKED | asked)))


def records_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "lenses.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def done(model: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the command has filled, run as a person does."""
    out = tmp_path_factory.mktemp("done") / "out"
    asked = ["--model", str(model), "--problems", str(problems), "--samples", "4", "--max-tokens", "40"]
    asked += ["--prompt", "number", "--gap-sentences", "1", "--greedy-tokens", "40", "--out", str(out)]
    ran = subprocess.run([sys.executable, "-m", "steerdec", "lenses", *asked], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = json.loads((out / "lenses.json").read_text())
    assert ran.stdout.splitlines() == [*told["findings"], str(out / "lenses.html")]
    return out


# What is told ------------------------------------------------------------------------------------


def test_the_json_has_every_pair_with_intervals_nulls_and_ceilings(done: Path) -> None:
    told = json.loads((done / "lenses.json").read_text())
    assert (told["problems"], told["looked_at"], told["skipped"]) == (5, 5, [])
    assert told["tokens"] == sum(len(record["tokens"]) for record in records_of(done))
    assert told["greedy_chains"] == 5
    assert told["looked_at_again"] == 2  # every fourth of five problems
    assert len(told["token_pairs"]) == 12 * 11 / 2
    tested = [pair for pair in told["token_pairs"] if "shift" in pair]
    assert len(tested) == 6
    for pair in tested:
        assert 0 < pair["shift"]["p"] <= pair["shift"]["p_holm"] <= 1
        assert 0 < pair["shuffle"]["p"] <= pair["shuffle"]["p_holm"] <= 1
        overlap = pair["measures"]["overlap"]
        assert overlap["ci95"][0] <= overlap["value"] <= overlap["ci95"][1]
        assert overlap["problems"] == 5
    assert told["ceilings"]["entropy"]["spearman"]["value"] > 0.9  # bfloat16 against float32
    assert len([pair for pair in told["sentence_pairs"] if "shift" in pair]) == 27
    assert [claim["verdict"] in ("holds", "fails", "undecided") for claim in told["claims"]] == [True] * 5


def test_the_scores_in_the_folder_are_those_of_a_plain_float64_pass(model: Path, done: Path) -> None:
    """From the folder's own samples, so that an index that is off by one anywhere on the way shows."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, exact = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).double()
    record = records_of(done)[0]
    samples = [json.loads(line) for line in (done / "traces.jsonl").read_text().splitlines()]
    sample = next(s for s in samples if (s["problem_id"], s["sample"]) == (record["problem_id"], record["sample"]))
    prompt, n = sample["prompt_ids"], len(record["tokens"])
    chain, closing = sample["response_ids"][:n], ending(tokenizer, "number", record["gold"])
    assert tokenizer.decode(chain) == "".join(record["tokens"])

    def logp(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(exact(torch.tensor([ids])).logits[0], -1)

    def answer(kept: list[int]) -> float:
        ids = [*prompt, *kept, *closing.tokens]
        rows = logp(ids)
        return sum(float(rows[i - 1, ids[i]]) for i in range(len(ids) - closing.scored, len(ids)))

    rows = logp([*prompt, *chain])[len(prompt) - 1 : -1]
    along = [answer(chain[:t]) for t in range(n + 1)]
    slow = {
        "entropy": [scipy.stats.entropy(row.exp().numpy()) for row in rows],
        "surprisal": [-float(row[token]) for row, token in zip(rows, chain, strict=True)],
        "answer_shift": np.abs(np.diff(along)),
        "leave_one_out": [along[-1] - answer([*chain[:t], *chain[t + 1 :]]) for t in range(n)],
    }
    for name, values in slow.items():
        assert record["scores"][name] == pytest.approx(np.array(values), abs=2e-4), name
    forced = [abs(along[b] - along[a]) for a, b in record["spans"]]
    assert record["sentences"]["forced_answer"] == pytest.approx(forced, abs=2e-4)
    others = [reasoning(tokenizer, s["response_ids"]) for s in samples if s["problem_id"] == record["problem_id"]]
    by_chain = []
    for other in others:
        ids = [*prompt, *other, *closing.tokens]
        last = logp(ids)
        by_chain.append([float(last[i - 1, ids[i]]) for i in range(len(ids) - closing.scored, len(ids))])
    assert record["answer_variance"]["sigma_nats"] == pytest.approx(np.std(by_chain, axis=0, ddof=1), abs=2e-4)


def test_the_page_is_one_file_whose_policy_runs_its_script_alone(done: Path) -> None:
    page = (done / "lenses.html").read_text()
    assert not re.search(r"(src|href)=.(?!#)", page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page or f"script-src 'sha256-{digest}'" in page
    assert str(done.parent) not in page


def test_the_page_shows_every_token_of_a_trace_with_every_lens_beneath_it(done: Path) -> None:
    page = (done / "lenses.html").read_text()
    for record, article in zip(records_of(done), re.findall(r"<article.*?</article>", page, re.DOTALL), strict=True):
        heads = re.findall(r'<th class="token-head"[^>]*>(.*?)</th>', article, re.DOTALL)
        assert len(heads) == len(record["tokens"])
        for table in re.findall(r"<table>.*?</table>", article, re.DOTALL):
            tokens = table.count('class="token-head"')
            for row in re.findall(r"<tr class=.*?</tr>", table, re.DOTALL):
                spans = [int(n or 1) for n in re.findall(r"<td(?: colspan=\"(\d+)\")?[ >]", row)]
                assert sum(spans) == tokens
        entropy = record["scores"]["entropy"]
        told = f"{max(entropy):.3g} nats, 1 of {len(entropy)}"
        assert html.escape(told) in article


def test_marked_tokens_are_the_top_fifth(done: Path) -> None:
    records = records_of(done)
    table = lens_matrix.read(records)
    for i, record in enumerate(records):
        strips = [strip for line in lens_page.lines(record, table, i) for strip in line.strips]
        entropy = [cell for strip in strips if strip.lens.name == "entropy" for cell in strip.cells]
        marked = [value for value, cell in zip(record["scores"]["entropy"], entropy, strict=True) if cell.top]
        assert len(marked) == round(0.2 * len(entropy))
        assert min(marked) >= sorted(record["scores"]["entropy"])[-len(marked)]


def test_by_keyboard_every_token_tells_its_values_and_the_select_shows_another_trace(
    done: Path, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    records = records_of(done)
    chrome = start_chrome(tmp_path / "chromium")
    try:
        chrome.get((done / "lenses.html").as_uri())
        articles = chrome.find_elements(By.CSS_SELECTOR, ".gloss")
        assert [article.is_displayed() for article in articles] == [True, False, False, False, False]
        heads = articles[0].find_elements(By.CSS_SELECTOR, ".token-head")
        assert [head.get_attribute("tabindex") for head in heads].count("0") == 1  # one stop for the tab key
        heads[0].send_keys(Keys.ARROW_RIGHT)
        for key in (Keys.END, Keys.ARROW_LEFT, Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT):
            chrome.switch_to.active_element.send_keys(key)
        assert chrome.switch_to.active_element == heads[2]
        told = articles[0].find_element(By.CSS_SELECTOR, ".readout").text
        assert f"token 3 of {len(heads)}" in told
        scores, first = records[0]["scores"], records[0]["sentences"]["forced_answer"][0]
        for name in ("entropy", "surprisal", "answer_shift", "leave_one_out"):
            assert f"{scores[name][2]:.3g}".replace("-", "\N{MINUS SIGN}") + " nats" in told, name
        assert f"{first:.3g} nats" in told  # of the sentence that the token is in
        Select(chrome.find_element(By.ID, "which")).select_by_index(3)
        assert [article.is_displayed() for article in articles] == [False, False, False, True, False]
        assert chrome.get_log("browser") == []
    finally:
        chrome.quit()


def test_what_a_model_writes_is_text_on_the_page(done: Path, tmp_path: Path) -> None:
    records = records_of(done)
    records[0]["tokens"][3] = "<script>alert(1)</script>"
    records[0]["answer"] = "<b>1</b>"
    lens_report.write(records, {"model": "m", "problems": "p", "samples": 4, "greedy_tokens": 0}, tmp_path)
    page = (tmp_path / "lenses.html").read_text()
    assert page.count("<script>") == 1
    assert "<b>1</b>" not in page


# Stop and go on ----------------------------------------------------------------------------------


def test_a_stopped_analysis_goes_on_and_comes_out_the_same(
    model: Path, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, whole, parts = resolved(model, problems), tmp_path / "whole", tmp_path / "parts"
    _, told = lens_report.lenses(asked, whole, SETTINGS)
    calls: list[str] = []
    look = lens_trace.Lenses.look

    def stopping(self: Any, chain: Any, seed: int, *, again: bool) -> dict[str, Any]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(chain.problem_id)
        return look(self, chain, seed, again=again)

    monkeypatch.setattr(lens_trace.Lenses, "look", stopping)
    with pytest.raises(KeyboardInterrupt):
        lens_report.lenses(asked, parts, SETTINGS)
    assert not (parts / "lenses.html").exists()
    assert [record["problem_id"] for record in records_of(parts)] == calls == ["p0", "p1"]
    with (parts / "lenses.jsonl").open("a") as torn:
        torn.write('{"problem_id": "p2", "arm')  # a kill in mid write
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        lens_report.lenses(asked, parts, SETTINGS)
    monkeypatch.setattr(lens_trace.Lenses, "look", look)
    _, again = lens_report.lenses(asked, parts, SETTINGS)
    timeless = [
        [{key: value for key, value in record.items() if key != "seconds"} for record in records_of(out)]
        for out in (whole, parts)
    ]
    assert timeless[0] == timeless[1]
    assert again | {"seconds_looking": 0} == told | {"seconds_looking": 0}


def test_a_finished_analysis_is_not_made_again(
    model: Path, problems: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("a lens was computed again")

    monkeypatch.setattr(lens_trace.Lenses, "look", fail)
    before = (done / "lenses.json").read_bytes(), (done / "lenses.jsonl").read_bytes()
    (done / "lenses.json").unlink()
    lens_report.lenses(resolved(model, problems), done, LensSettings(greedy_tokens=40, gap_sentences=1))
    assert ((done / "lenses.json").read_bytes(), (done / "lenses.jsonl").read_bytes()) == before


def test_other_settings_are_refused_in_the_same_folder(model: Path, problems: Path, done: Path) -> None:
    with pytest.raises(InputError, match="gap_sentences: 1 -> 2"):
        lens_report.lenses(resolved(model, problems), done, LensSettings(greedy_tokens=40, gap_sentences=2))


# Bad input ---------------------------------------------------------------------------------------


def test_no_problems_and_one_answer_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"none\.jsonl") as told:
        resolved(model, tmp_path / "none.jsonl")
    assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="gives 3 with one answer; two different answers are needed"):
        resolved(model, written(tmp_path, ["7", "7", "7"]))


def test_too_few_samples_and_no_problem_set_are_refused(model: Path, problems: Path) -> None:
    with pytest.raises(InputError, match=r"--samples: 3; the spread of an answer over chains needs 4"):
        resolved(model, problems, samples=3)
    with pytest.raises(InputError, match=r"--problems is required"):
        looking.resolve(Source(model=str(model)))


def test_a_trace_longer_than_the_context_is_refused_before_anything_is_written(
    model: Path, problems: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^--max-tokens: 1000 with a prompt and an answer of \d+ tokens; .* 1024"):
        lens_report.lenses(resolved(model, problems, max_tokens=1000), tmp_path / "out", SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["states", "logits"])
def test_a_model_that_gives_nan_is_refused_before_anything_is_written(
    problems: Path, tmp_path: Path, where: str
) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_lm(tmp_path / "broken")
    broken = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        weight = broken.model.layers[1].mlp.down_proj.weight if where == "states" else broken.lm_head.weight
        weight[3, 0] = torch.nan
    broken.save_pretrained(folder)
    with pytest.raises(AnalysisError, match=r"not finite") as told:
        lens_report.lenses(resolved(folder, problems), tmp_path / "out", SETTINGS)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_a_model_that_never_reasons_is_told_and_leaves_no_page(model: Path, problems: Path, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="none of 5 problems has a chain to analyze: no sample reasons"):
        lens_report.lenses(resolved(model, problems, max_tokens=6), tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out" / "lenses.html").exists()
    assert not (tmp_path / "out" / "lenses.json").exists()


def test_of_a_grade_only_chains_with_it_are_analyzed(model: Path, problems: Path, done: Path, tmp_path: Path) -> None:
    """The tiny model is never right, so its samples are regraded, as if the last of p1 and no other were right."""
    asked, out = resolved(model, problems, grade="correct"), tmp_path / "out"
    with pytest.raises(AnalysisError, match="none of 5 problems has a chain to analyze: no correct sample reasons"):
        lens_report.lenses(asked, out, SETTINGS)
    (out / "lenses.jsonl").unlink()
    traces = [json.loads(line) for line in (out / "traces.jsonl").read_text("utf-8").splitlines()]
    assert {trace["grade"] for trace in traces} == {"incorrect"}
    for trace in traces:
        trace["grade"] = "correct" if (trace["problem_id"], trace["sample"]) == ("p1", 3) else "incorrect"
    (out / "traces.jsonl").write_text("".join(json.dumps(trace) + "\n" for trace in traces), "utf-8")
    lens_report.lenses(asked, out, SETTINGS)
    (record,) = (record for record in records_of(out) if not record.get("skipped"))
    assert (record["problem_id"], record["sample"], record["grade"], record["rollouts"]) == ("p1", 3, "correct", 4)


def test_a_failure_is_one_plain_line_and_a_status(model: Path, problems: Path, tmp_path: Path) -> None:
    asked = ["--model", str(model), "--problems", str(problems), "--out", str(tmp_path / "out"), "--samples", "2"]
    ran = subprocess.run([sys.executable, "-m", "steerdec", "lenses", *asked], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr == "steerdec: --samples: 2; the spread of an answer over chains needs 4\n"
    assert not (tmp_path / "out").exists()
