"""Thought anchors by resampling: closed forms, sampling against a slow version, the command on a model that answers.

The tiny model writes letters, full stops and now and then a boxed number, and ends; so its rollouts have answers that
the project's own grading reads.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch

from steerdec.analysis.lenses import report as lens_report
from steerdec.analysis.lenses import resampling
from steerdec.analysis.lenses import run as looking
from steerdec.analysis.lenses.anchors import Rollouts, answer_kl, importance
from steerdec.analysis.lenses.resampling import first_sentence, rollout_seeds, sentence_states, similarities
from steerdec.analysis.lenses.trace import LensSettings
from steerdec.analysis.traces import loading
from steerdec.analysis.traces.continuations import TEMPERATURE, TOP_P, continuations, nucleus_draw
from steerdec.analysis.traces.endings import reasoning
from steerdec.analysis.traces.loading import Loaded
from steerdec.analysis.traces.source import Resolved, Source
from steerdec.benchmarks.design import plan
from steerdec.common.errors import AnalysisError, InputError
from steerdec.grading.grade import grade
from tests.support.tiny_lm import tiny_lm

SETTINGS = LensSettings(greedy_tokens=0, gap_sentences=1, again_every=10, resamples=5)
ASKED = {"samples": 6, "temperature": 0.6, "max_tokens": 60, "prompt": "number"}
BOXES = ("\\boxed{1}", "\\boxed{3}", "\\boxed{5}")


def answering(folder: Path) -> Path:
    """`tiny_lm` with three boxed numbers among what it writes, after which it mostly ends."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tiny_lm(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.add_tokens(list(BOXES))
    torch.manual_seed(1)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 1] = model.lm_head.weight[:, 1] = 0
        for layer in model.model.layers:  # a second dimension of its own: a box was just written, so it ends
            layer.self_attn.o_proj.weight[1] = 0
            layer.mlp.down_proj.weight[1] = 0
        for text, bias, written, ends in (*((box, -1.3, 8, 0) for box in BOXES), (tokenizer.eos_token, -1.4, 0, 3)):
            token = tokenizer.convert_tokens_to_ids(text)
            for weight, own in ((model.model.embed_tokens.weight, (8, written)), (model.lm_head.weight, (bias, ends))):
                weight[token] = 0.1 * torch.randn(32)
                weight[token, :2] = torch.tensor(own, dtype=weight.dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def exact(model: Path) -> Loaded:
    """In float64, so that no draw turns on rounding."""
    loaded = loading.load(str(model))
    return replace(loaded, model=loaded.model.double(), dtype=torch.float64)


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = [{"id": f"p{i}", "problem": f"Add {i} and {i + 1}.", "answer": str(2 * i + 1)} for i in range(3)]
    path = tmp_path_factory.mktemp("problems") / "some.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def resolved(model: Path, problems: Path, **asked: Any) -> Resolved:
    return looking.resolve(Source(model=str(model), problems=str(problems), **(ASKED | asked)))


def lines_of(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def timeless(out: Path, name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines_of(out, name)]


@pytest.fixture(scope="module")
def done(model: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the command has filled, run as a person does."""
    out = tmp_path_factory.mktemp("done") / "out"
    asked = ["--model", str(model), "--problems", str(problems), "--samples", "6", "--max-tokens", "60"]
    asked += ["--temperature", "0.6", "--prompt", "number", "--gap-sentences", "1", "--greedy-tokens", "0"]
    command = [sys.executable, "-m", "steerdec", "lenses", *asked, "--resamples", "5", "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "rollouts," in ran.stderr  # how far it is
    return out


# Importance --------------------------------------------------------------------------------------


def rollouts(right: int, wrong: int, cosines: list[float] | None = None) -> Rollouts:
    answers = ["7"] * right + ["8"] * wrong
    found = [0.0] * len(answers) if cosines is None else cosines
    return Rollouts(tuple(answers), tuple(answer == "7" for answer in answers), tuple(found))


def test_a_sentence_that_decides_the_answer_gets_what_was_missing() -> None:
    found = importance([rollouts(3, 7), rollouts(10, 0)])
    assert found.resampled == pytest.approx([1 - 0.3])
    assert found.counterfactual == pytest.approx([1 - 0.3])
    assert found.resampled_error == pytest.approx([np.sqrt(0.5 / 10)])
    assert found.differing.tolist() == [10]


def test_a_sentence_that_is_always_said_again_has_no_counterfactual() -> None:
    found = importance([rollouts(3, 7, [1.0, 0.8] * 5), rollouts(10, 0)])
    assert found.resampled == pytest.approx([0.7])
    for values in (found.counterfactual, found.counterfactual_error, found.counterfactual_kl_nats):
        assert np.isnan(values).all()
    assert found.differing.tolist() == [0]


def test_only_rollouts_of_another_meaning_are_counterfactual() -> None:
    """Those that say the same are right, the others are not: the sentence is worth more than resampling shows."""
    found = importance([rollouts(6, 2, [0.9] * 6 + [0.79, -0.4]), rollouts(8, 0)])
    assert found.resampled == pytest.approx([0.25])
    assert found.counterfactual == pytest.approx([1.0])
    assert found.counterfactual_error == pytest.approx([np.sqrt(0.25 / 2 + 0.25 / 8)])
    assert found.differing.tolist() == [2]


def test_what_sentences_add_is_together_what_the_chain_adds() -> None:
    places = [rollouts(k, 10 - k) for k in (2, 7, 4, 9)]
    found = importance(places)
    assert found.resampled == pytest.approx([0.5, -0.3, 0.5])
    assert found.resampled.sum() == pytest.approx(0.9 - 0.2)


def test_the_standard_error_is_that_of_two_shares_at_one_half() -> None:
    rng = np.random.default_rng(0)
    shares = rng.binomial(20, 0.5, size=(200_000, 2)) / 20
    told = importance([rollouts(10, 10), rollouts(10, 10)]).resampled_error[0]
    assert np.std(shares[:, 1] - shares[:, 0]) == pytest.approx(told, rel=0.01)


def test_kl_of_answers_is_smoothed_and_counts_no_answer_as_one() -> None:
    assert answer_kl(["1"] * 4, ["2"] * 4) == pytest.approx(2 / 3 * np.log(5))
    assert answer_kl(["1", None, "1"], ["1", "1", None]) == 0
    without, having = ["1", "1", None, "3"], [None, "1", "2", "2", "2"]
    p, q = ([sample.count(a) + 1 for a in (None, "1", "2", "3")] for sample in (without, having))
    assert answer_kl(without, having) == pytest.approx(scipy.stats.entropy(p, q))


def test_halves_are_of_even_and_odd_rollouts() -> None:
    record = {"sentences": {"forced_answer": [0.5]}}
    sides = [[True, False, True, False], [True, True, False, True]]
    lines = [
        {
            "answers": ["7" if one else None for one in right],
            "right": right,
            "cosines": [0.1, 0.9, 0.2, 0.3] if place == 0 else [],
            "tokens": [1, 2, 3, 4],
            "seconds": 0.5,
        }
        for place, right in enumerate(sides)
    ]
    found = resampling.added(record, lines)
    assert found["sentences"] == {
        "forced_answer": [0.5],
        "resampled": [0.25],
        "counterfactual": [pytest.approx(0.75 - 2 / 3)],
        "resampled@even": [0.5],  # 1 of 2 after, 2 of 2 before
        "counterfactual@even": [0.5],
        "resampled@odd": [1.0],
        "counterfactual@odd": [1.0],
    }
    assert found["resampling"]["right"] == [0.5, 0.75]
    assert found["resampling"]["unanswered"] == [0.5, 0.25]
    assert found["resampling"]["sentences"]["differing"] == [3]
    assert found["resampling"]["tokens"] == 20


# Sampling ----------------------------------------------------------------------------------------


def slow_draw(logits: Any, uniform: float) -> int:
    """As the definition stands: take the likeliest until they have TOP_P together, then walk to the uniform."""
    p = np.exp(np.asarray(logits, dtype=np.float64) / TEMPERATURE)
    p /= p.sum()
    kept: list[int] = []
    mass = 0.0
    for token in np.argsort(-p).tolist():
        kept.append(token)
        mass += p[token]
        if mass >= TOP_P:
            break
    left = uniform * mass
    for token in kept:
        left -= p[token]
        if left < 0:
            return token
    return kept[-1]


@pytest.mark.parametrize(("vocabulary", "scale"), [(5, 3.0), (61, 2.0), (2000, 4.0), (2000, 0.1)])
def test_a_draw_is_from_the_nucleus(vocabulary: int, scale: float) -> None:
    """The last vocabulary is so flat that the nucleus holds more than is looked at first."""
    rng = np.random.default_rng(vocabulary)
    logits = scale * rng.normal(size=(200, vocabulary))
    uniforms = rng.random(200)
    uniforms[:2] = 0.0, 1 - 2**-53
    found = nucleus_draw(torch.from_numpy(logits).float(), torch.from_numpy(uniforms))
    assert found.tolist() == [slow_draw(row, u) for row, u in zip(logits.astype(np.float32), uniforms, strict=True)]


def test_draws_have_the_probabilities_of_the_nucleus() -> None:
    p = np.array([0.6, 0.3, 0.08, 0.02])  # the last lies outside
    logits = torch.from_numpy(TEMPERATURE * np.log(p)).expand(10_000, -1)
    drawn = nucleus_draw(logits, (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000)
    counts = np.bincount(drawn.numpy(), minlength=4) / 10_000
    assert counts == pytest.approx(np.array([0.6, 0.3, 0.08, 0]) / 0.98, abs=2e-4)


def slow_continuation(
    loaded: Loaded, prompt: Any, begun: Any, seed: int, most_tokens: int, stops: tuple[str, ...] = ()
) -> tuple[list[int], str]:
    """One token after the other, each by a pass over everything before it."""
    uniforms = np.random.Generator(np.random.Philox(key=seed)).random(most_tokens - len(begun))
    response = list(begun)
    for uniform in uniforms:
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0, -1]
        response.append(slow_draw(logits.float().numpy(), uniform))
        if response[-1] == loaded.tokenizer.eos_token_id:
            return response, "stop"
        if any(stop in loaded.tokenizer.decode(response[len(begun) :]) for stop in stops):
            return response, "stop"
    return response, "length"


PROMPT = (40, 41, 42, 43, 44, 45, 46)


def test_rollouts_are_those_of_one_pass_a_token(exact: Loaded) -> None:
    begun, seeds = (70, 71, 72), list(range(100, 108))
    found = list(continuations(exact, PROMPT, begun, seeds, (), 40))
    assert found == [slow_continuation(exact, PROMPT, begun, seed, 40) for seed in seeds]
    assert {reason for _, reason in found} == {"stop", "length"}
    assert len({tuple(ids) for ids, _ in found}) == len(seeds)
    assert max(len(ids) for ids, _ in found) == 40


def test_a_rollout_does_not_depend_on_those_beside_it(exact: Loaded) -> None:
    together = list(continuations(exact, PROMPT, (), range(6), (), 30))
    assert together == [next(continuations(exact, PROMPT, (), [seed], (), 30)) for seed in range(6)]


def test_a_stop_text_ends_a_rollout(exact: Loaded) -> None:
    found = list(continuations(exact, PROMPT, (70,), range(6), (". ",), 40))
    assert found == [slow_continuation(exact, PROMPT, (70,), seed, 40, (". ",)) for seed in range(6)]
    ended = [ids for ids, _ in found if exact.tokenizer.decode(ids).endswith(". ")]
    assert ended


def test_a_chain_without_room_is_cut_off_as_it_is(exact: Loaded) -> None:
    assert list(continuations(exact, PROMPT, (70, 71), range(2), (), 2)) == [([70, 71], "length")] * 2


def test_no_two_rollouts_share_a_seed_and_the_same_rollout_keeps_its_own() -> None:
    places = [
        (run, f"p{i}", sample, place) for run in (0, 1) for i in range(3) for sample in (0, 1) for place in (0, 1)
    ]
    seeds = {seed for where in places for seed in rollout_seeds(*where, 5)}
    assert len(seeds) == 5 * len(places)
    assert rollout_seeds(*places[0], 3) == rollout_seeds(*places[0], 5)[:3]


def test_nan_logits_are_told_in_one_line(model: Path) -> None:
    loaded = loading.load(str(model))
    with torch.no_grad():
        loaded.model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(AnalysisError, match=r"^the model's logits are not finite \(NaN\)"):
        list(continuations(loaded, PROMPT, (), [1], (), 4))


# Meaning -----------------------------------------------------------------------------------------


def test_a_sentence_stands_for_its_mean_state_fed_alone(exact: Loaded) -> None:
    sentences = [(70, 71, 72, 73), (90,), (), (65, 66)]
    found = sentence_states(exact, sentences)
    for ids, state in zip(sentences, found, strict=True):
        if not ids:
            assert not state.any()
            continue
        with torch.no_grad():
            states = exact.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        assert torch.allclose(state, states.mean(dim=0))


def test_similarity_is_the_cosine_from_the_centre(exact: Loaded) -> None:
    sentence, others = (70, 71, 72), [(70, 71, 72), (80, 81), (), (90, 91, 92, 93)]
    states = sentence_states(exact, [sentence, *others]).numpy()
    center = states[[0, 2, 4]].mean(axis=0)
    found = similarities(exact, sentence, others, torch.from_numpy(center))
    slow = [1 - scipy.spatial.distance.cosine(states[0] - center, states[i] - center) for i in (2, 4)]
    assert found == pytest.approx([1.0, slow[0], 0.0, slow[1]])
    assert max(slow) < 1


def test_in_the_centre_itself_only_the_same_text_is_alike(exact: Loaded) -> None:
    center = sentence_states(exact, [(70, 71)])[0]
    assert similarities(exact, (70, 71), [(70, 71), (80, 81)], center) == [1.0, 0.0]


def test_the_first_sentence_is_without_what_ends_the_response(exact: Loaded) -> None:
    tokenizer = exact.tokenizer
    ids = tokenizer("aaa bbb ccc ddd. eee fff ggg hhh. ").input_ids
    end = tokenizer.eos_token_id
    assert tokenizer.decode(first_sentence(tokenizer, [*ids, end], {end})).strip() == "aaa bbb ccc ddd."
    assert first_sentence(tokenizer, [end], {end}) == ()


# The command -------------------------------------------------------------------------------------


def chains_of(loaded: Loaded, out: Path) -> Iterator[tuple[dict[str, Any], list[int], tuple[int, ...]]]:
    """(record, prompt, chain) of each problem that was looked at, from the folder's own samples."""
    samples = {(s["problem_id"], s["sample"]): s for s in lines_of(out, "traces")}
    for record in lines_of(out, "lenses"):
        sample = samples[record["problem_id"], record["sample"]]
        yield record, sample["prompt_ids"], reasoning(loaded.tokenizer, sample["response_ids"])


def test_the_lines_in_the_folder_are_those_of_slow_rollouts(exact: Loaded, done: Path) -> None:
    """The place, the seed, the room, the grade, and the first sentence with its cosine, of every rollout."""
    end, found = exact.tokenizer.eos_token_id, list(chains_of(exact, done))
    sentences = [chain[a:b] for record, _, chain in found for a, b in record["spans"]]
    center = sentence_states(exact, sentences).mean(dim=0).numpy()
    checked, differing = 0, 0
    for record, prompt, chain in found:
        begins = [*(a for a, _ in record["spans"]), len(chain)]
        own = [line for line in lines_of(done, "resamples") if line["problem_id"] == record["problem_id"]]
        assert [line["sample"] for line in own] == list(range(len(begins)))
        for place, (line, begin) in enumerate(zip(own, begins, strict=True)):
            assert len(line["cosines"]) == (0 if begin == len(chain) else 5)
            for k in range(5):
                seed = plan.sample_seed(0, record["problem_id"], k, f"resamples/{record['sample']}/{place}")
                ids, reason = slow_continuation(exact, prompt, chain[:begin], seed, len(chain) + 60)
                graded = grade(exact.tokenizer.decode(ids, skip_special_tokens=True), record["gold"], "integer", reason)
                assert (line["finish_reasons"][k], line["tokens"][k]) == (reason, len(ids) - begin)
                assert (line["answers"][k], line["right"][k]) == (graded.answer, graded.grade == "correct")
                first = first_sentence(exact.tokenizer, ids[begin:], {end})
                assert line["first_sentences"][k] == exact.tokenizer.decode(first)
                checked += 1
                if line["cosines"] and first != chain[begin : begins[place + 1]]:
                    states = sentence_states(exact, [chain[begin : begins[place + 1]], first]).numpy() - center
                    slow = 1 - scipy.spatial.distance.cosine(*states)
                    assert line["cosines"][k] == pytest.approx(slow, abs=1e-3)
                    differing += 1
    assert checked == 5 * len(lines_of(done, "resamples")) > 30
    assert differing > 10


def test_the_json_has_every_sentences_importance(done: Path) -> None:
    told = json.loads((done / "lenses.json").read_text())
    assert told["settings"]["resamples"] == 5
    found, records = told["resampling"], lines_of(done, "lenses")
    assert found["standard_error"] == pytest.approx(np.sqrt(0.5 / 5), rel=1e-5)
    assert found["places"] == len(lines_of(done, "resamples"))
    for one, record in zip(found["problems"], records, strict=True):
        own = [x for x in lines_of(done, "resamples") if x["problem_id"] == record["problem_id"]]
        right = [float(np.mean(x["right"])) for x in own]
        assert one["right"] == pytest.approx(right)
        assert one["resampled"] == pytest.approx(np.diff(right))
        for i, line in enumerate(own[:-1]):
            kept = [r for r, cosine in zip(line["right"], line["cosines"], strict=True) if cosine < 0.8]
            assert one["differing"][i] == len(kept)
            expected = pytest.approx(right[i + 1] - np.mean(kept)) if kept else None
            assert one["counterfactual"][i] == expected
    before = np.mean([one["right"][0] for one in found["problems"]])
    assert found["means"]["right_before"]["value"] == pytest.approx(before, abs=1e-6)
    assert 0 < found["means"]["unanswered"]["value"] < 1
    assert found["means"]["right_after"]["value"] > 0


def test_both_are_lenses_of_the_matrix_and_rows_of_the_page(done: Path) -> None:
    told, page = json.loads((done / "lenses.json").read_text()), (done / "lenses.html").read_text()
    tested = [(pair["first"], pair["second"]) for pair in told["sentence_pairs"] if "shift" in pair]
    assert len(tested) == 27 + 22
    assert ("resampled", "entropy.max") in tested
    assert ("counterfactual", "forced_answer") in tested
    assert ("resampled", "counterfactual") not in tested
    assert set(told["ceilings"]) >= {"resampled", "counterfactual", "receiver"}
    assert 'id="resampling"' in page
    for short in ("resampling", "counterfactual"):
        assert f'<tr class="sentence"><th scope="row">{short}</th>' in page


def test_without_the_option_nothing_is_resampled_and_nothing_is_told_of_it(
    model: Path, problems: Path, tmp_path: Path
) -> None:
    plain = replace(SETTINGS, resamples=0)
    _, told = lens_report.lenses(resolved(model, problems), tmp_path / "out", plain)
    assert "resamples" not in json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert "resampling" not in told
    assert len([pair for pair in told["sentence_pairs"] if "shift" in pair]) == 27
    assert not (tmp_path / "out" / "resamples.jsonl").exists()
    assert "esampling" not in (tmp_path / "out" / "lenses.html").read_text()
    with pytest.raises(InputError, match="resamples: null -> 5"):
        lens_report.lenses(resolved(model, problems), tmp_path / "out", SETTINGS)


def test_a_stopped_analysis_goes_on_and_comes_out_the_same(
    model: Path, problems: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", resolved(model, problems)
    settings = LensSettings(greedy_tokens=0, gap_sentences=1, resamples=5)
    places: list[Any] = []
    once = resampling._line

    def stopping(*given: Any) -> dict[str, Any]:
        if len(places) == 3:
            raise KeyboardInterrupt
        places.append(given)
        return once(*given)

    monkeypatch.setattr(resampling, "_line", stopping)
    with pytest.raises(KeyboardInterrupt):
        lens_report.lenses(asked, out, settings)
    assert not (out / "lenses.html").exists()
    assert len(lines_of(out, "resamples")) == 3
    with (out / "resamples.jsonl").open("a") as torn:
        torn.write('{"problem_id": "p1", "arm')  # a kill in mid write
    again: list[Any] = []
    monkeypatch.setattr(resampling, "_line", lambda *given: again.append(given) or once(*given))
    lens_report.lenses(asked, out, settings)
    assert len(places) + len(again) == len(lines_of(done, "resamples"))
    assert timeless(out, "resamples") == timeless(done, "resamples")
    assert timeless(out, "lenses") == timeless(done, "lenses")
    monkeypatch.setattr(resampling, "_line", lambda *_: pytest.fail("a place was gone on from again"))
    before = (out / "lenses.json").read_bytes()
    lens_report.lenses(asked, out, settings)
    assert (out / "lenses.json").read_bytes() == before


# Bad input ---------------------------------------------------------------------------------------


def test_a_rollout_that_does_not_fit_is_refused_before_anything_is_written(
    model: Path, problems: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^--resamples: rollouts may have twice --max-tokens, 1200, .* at most 1024"):
        lens_report.lenses(resolved(model, problems, max_tokens=600), tmp_path / "out", SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["-1", "10001", "many", "2.5"])
def test_other_numbers_are_refused_in_one_line(problems: Path, tmp_path: Path, value: str) -> None:
    asked = ["--model", "x", "--problems", str(problems), "--out", str(tmp_path / "out"), f"--resamples={value}"]
    ran = subprocess.run([sys.executable, "-m", "steerdec", "lenses", *asked], capture_output=True, text=True)
    assert ran.returncode == 2
    assert len(ran.stderr.splitlines()) == 1
    assert "--resamples" in ran.stderr
    assert value in ran.stderr
    assert "10000" in ran.stderr
