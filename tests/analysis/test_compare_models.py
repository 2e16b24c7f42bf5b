"""`steerdec compare-models` on tiny models: against a slow version, what was planted, resuming, bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from steerdec.analysis.compare import run as compare
from steerdec.analysis.compare.shift import BINS, bin_of, overlaps, shift
from steerdec.analysis.traces import loading
from steerdec.analysis.traces.scoring import Scores
from steerdec.analysis.traces.source import Source
from steerdec.analysis.traces.trace import Trace
from steerdec.cli import main as cli
from steerdec.common import bootstrap
from steerdec.common.errors import InputError
from tests.support.tiny_models import CONTEXT_TOKENS, saved, tiny_model, tiny_tokenizer

Floats = NDArray[np.float64]
PROBLEMS, SAMPLES, TOKENS = 5, 3, 24


# The statistics ----------------------------------------------------------------------------------


def traces(lengths: list[int], problems: list[str]) -> list[Trace]:
    made = []
    for i, (length, problem) in enumerate(zip(lengths, problems, strict=True)):
        ids = tuple(range(length))
        made.append(Trace(problem, "sampled", i, (0,), ids, "1", "integer", None, "correct", "stop", "", "sampled"))
    return made


def scores(h: Floats) -> Scores:
    return Scores(h.astype(np.float32), h.astype(np.float32), np.zeros(len(h), np.int64))


def drawn(seed: int, spread: float = 0.3) -> tuple[list[Trace], list[Scores], list[Scores]]:
    """Four problems with responses of several lengths, and entropies of two models that are alike."""
    rng = np.random.default_rng(seed)
    lengths = [int(n) for n in rng.integers(3, 90, 12)]
    made = traces(lengths, [f"p{i % 4}" for i in range(12)])
    base = [rng.exponential(0.5, n) for n in lengths]
    tuned = [np.abs(h + spread * rng.standard_normal(len(h))) for h in base]
    return made, [scores(h) for h in base], [scores(h) for h in tuned]


def pool(found: list[Scores]) -> Floats:
    return np.concatenate([s.entropy_nats for s in found]).astype(np.float64)


def top(h: Floats) -> set[int]:
    return {int(i) for i in np.argsort(-h, kind="stable")[: max(1, round(0.2 * len(h)))]}


def test_overlap_and_changes_are_those_of_a_slow_version() -> None:
    made, base, tuned = drawn(1)
    a, b = pool(base), pool(tuned)
    found = shift(made, base, tuned)
    assert (found.tokens, found.responses, found.problems) == (len(a), 12, 4)
    assert found.pooled.value.value == len(top(a) & top(b)) / len(top(b))
    assert found.pooled.chance == len(top(b)) / len(b)
    each = [
        (len(top(x) & top(y)) / len(top(y)), len(top(y)) / len(y))
        for x, y in ((one.entropy_nats, two.entropy_nats) for one, two in zip(base, tuned, strict=True))
    ]
    assert found.per_response.value.value == pytest.approx(np.mean([o for o, _ in each]))
    assert found.per_response.chance == pytest.approx(np.mean([c for _, c in each]))
    assert found.mean.change_nats.value == pytest.approx(float(np.mean(b - a)))
    assert found.absolute_change_nats.value == pytest.approx(float(np.mean(np.abs(b - a))))
    for i, (own, members) in enumerate(zip(found.bins, slow_bins(a), strict=True)):
        assert (own.from_percentile, own.to_percentile, own.tokens) == (5 * i, 5 * i + 5, len(members))
        assert own.base_nats == pytest.approx(float(np.mean(a[members])))
        assert own.signed_nats.value == pytest.approx(float(np.mean((b - a)[members])))
        assert own.absolute_nats.value == pytest.approx(float(np.mean(np.abs(b - a)[members])))
    for own, members in zip(found.bins, slow_bins(b), strict=True):
        assert own.signed_by_tuned_nats.value == pytest.approx(float(np.mean((b - a)[members])))
    for name, q in found.quantiles.items():
        assert q.base_nats.value == np.quantile(a, int(name[1:]) / 100)
        assert q.tuned_nats.value - q.base_nats.value == q.change_nats.value


def slow_bins(h: Floats) -> list[list[int]]:
    order = [int(i) for i in np.argsort(h, kind="stable")]
    return [[t for rank, t in enumerate(order) if rank * BINS // len(h) == i] for i in range(BINS)]


def test_an_interval_is_what_copying_the_drawn_problems_gives() -> None:
    made, base, tuned = drawn(2)
    a, b = pool(base), pool(tuned)
    group = np.repeat([int(t.problem_id[1:]) for t in made], [len(t.response_ids) for t in made])
    w = bootstrap.weights(4, np.random.default_rng(0), 200)
    slow = []
    for times in w.astype(int):
        copies = np.concatenate([np.flatnonzero(group == g) for g in range(4) for _ in range(times[g])])
        cuts = [np.sort(h[copies])[int(np.ceil(0.8 * len(copies) - 1e-9)) - 1] for h in (a, b)]
        slow.append(float(np.mean(a[copies][b[copies] > cuts[1]] > cuts[0])))
    fast = overlaps(a, b, group, w)
    assert fast == pytest.approx(np.array(slow))
    assert fast.std() > 0


def test_every_number_lies_within_its_interval() -> None:
    found = shift(*drawn(3))
    values = [found.pooled.value, found.per_response.value, found.absolute_change_nats, found.mean.change_nats]
    values += [value for one in found.bins for value in (one.signed_nats, one.absolute_nats)]
    values += [value for q in found.quantiles.values() for value in (q.base_nats, q.tuned_nats)]
    for value in values:
        assert value.ci95 is not None
        assert value.ci95[0] <= value.value <= value.ci95[1]
        assert value.ci95[0] < value.ci95[1]


def test_a_model_with_itself_shares_all_and_changes_nothing() -> None:
    made, base, _ = drawn(4)
    same = [Scores(np.round(s.entropy_nats, 1), s.surprisal_nats, s.rank) for s in base]  # with many ties
    found = shift(made, same, same)
    assert found.pooled.value.value == found.per_response.value.value == 1.0
    assert found.pooled.value.ci95 == found.per_response.value.ci95 == (1.0, 1.0)
    assert found.absolute_change_nats.value == 0.0
    assert all(one.signed_nats.value == one.absolute_nats.value == 0.0 for one in found.bins)
    assert all(q.change_nats.value == 0.0 and q.change_nats.ci95 == (0.0, 0.0) for q in found.quantiles.values())


def test_a_change_planted_in_some_bins_is_found_there_with_its_sign() -> None:
    rng = np.random.default_rng(5)
    a = rng.permutation(np.arange(2000) / 1000.0)
    planted = np.zeros(2000)
    planted[(a >= 0.4) & (a < 0.5)] = -0.001 / 4  # bin 4, order kept
    planted[a >= 1.9] = 0.5  # bin 19
    planted[(a >= 1.8) & (a < 1.9)] = np.where(np.arange(2000) % 2, 1e-4, -1e-4)[(a >= 1.8) & (a < 1.9)]  # bin 18
    made = traces([100] * 20, [f"p{i}" for i in range(20)])
    base = [Scores(h, h, np.zeros(100, np.int64)) for h in np.split(a, 20)]  # float64: the planted values, exactly
    tuned = [Scores(h, h, np.zeros(100, np.int64)) for h in np.split(a + planted, 20)]
    found = shift(made, base, tuned)
    for i, one in enumerate(found.bins):
        assert one.tokens == 100
        expected = {4: -0.00025, 19: 0.5}.get(i, 0.0)
        if i != 18:
            assert one.signed_nats.value == pytest.approx(expected, abs=1e-12)
            assert one.absolute_nats.value == pytest.approx(abs(expected), abs=1e-12)
        else:
            assert abs(one.signed_nats.value) < one.absolute_nats.value == pytest.approx(1e-4)
    assert found.pooled.value.value == 1.0


def test_unrelated_models_share_what_chance_gives() -> None:
    rng = np.random.default_rng(6)
    made = traces([400] * 50, [f"p{i}" for i in range(50)])
    base, tuned = ([scores(rng.exponential(1.0, 400)) for _ in range(50)] for _ in range(2))
    found = shift(made, base, tuned)
    for own in (found.pooled, found.per_response):
        assert own.chance == pytest.approx(0.2)
        assert own.value.ci95 is not None
        assert own.value.ci95[0] < 0.2 < own.value.ci95[1]
        assert own.value.ci95[1] - own.value.ci95[0] < 0.04
    # Binned by one of two unrelated models, its high bins fall; binned by the other, they rise: neither is training.
    assert found.bins[-1].signed_nats.value < -1 < 1 < found.bins[-1].signed_by_tuned_nats.value


def test_one_problem_has_numbers_and_no_intervals() -> None:
    made, base, tuned = drawn(7)
    one = traces([len(t.response_ids) for t in made], ["only"] * len(made))
    found = shift(one, base, tuned)
    assert found.pooled.value.value == shift(made, base, tuned).pooled.value.value
    assert found.pooled.value.ci95 is found.bins[0].signed_nats.ci95 is found.mean.change_nats.ci95 is None


def test_equal_entropies_are_spread_over_bins_by_a_draw() -> None:
    counts = np.bincount(bin_of(np.zeros(400), 0), minlength=BINS)
    assert counts.tolist() == [20] * BINS
    halves = [int((bin_of(np.zeros(400), 0)[:200] == i).sum()) for i in range(BINS)]
    assert max(halves) < 20, "not in the order of their places"


# The command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, tuned (some weights moved), long (a longer context), and a problem set."""
    root = tmp_path_factory.mktemp("models")
    saved(tiny_model(), root / "base")
    tuned = tiny_model()
    with torch.no_grad():
        tuned.model.layers[1].mlp.down_proj.weight[:4] += 0.05
    saved(tuned, root / "tuned", max_shard_size="20KB")
    assert len(list((root / "tuned").glob("*.safetensors"))) > 2
    lines = [{"id": f"q{i}", "problem": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(PROBLEMS)]
    (root / "set.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def run(capsys: Any, *words: object) -> tuple[int, str, str]:
    """Exit status and what was printed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["steerdec", "compare-models", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def asked(folders: Path, base: str, tuned: str, out: Path, *more: object) -> tuple[object, ...]:
    few = ("--samples", SAMPLES, "--max-tokens", TOKENS, "--prompt", "few-shot", "--device", "cpu")
    return (folders / base, folders / tuned, "--problems", folders / "set.jsonl", "--out", out, *few, *more)


@pytest.fixture(scope="module")
def compared(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole comparison."""
    out = tmp_path_factory.mktemp("compared") / "out"
    source = Source(
        model=str(folders / "tuned"),
        problems=str(folders / "set.jsonl"),
        samples=SAMPLES,
        max_tokens=TOKENS,
        prompt="few-shot",
        device="cpu",
    )
    compare.compare_models(compare.resolve(str(folders / "base"), source), out)
    return out


def told(out: Path) -> dict[str, Any]:
    return json.loads((out / compare.JSON).read_text())  # type: ignore[no-any-return]


def test_the_tuned_model_answers_and_both_score_the_same_tokens(folders: Path, compared: Path) -> None:
    lines = [json.loads(line) for line in (compared / "traces.jsonl").read_text().splitlines()]
    assert len(lines) == PROBLEMS * SAMPLES
    entropies: dict[str, list[Floats]] = {}
    for name in ("base", "tuned"):
        model = AutoModelForCausalLM.from_pretrained(folders / name).double().eval()
        kept = [json.loads(line) for line in (compared / f"scores-{name}.jsonl").read_text().splitlines()]
        by_key = {(line["problem_id"], line["sample"]): line["entropy_nats"] for line in kept}
        for line in lines:
            ids = [*line["prompt_ids"], *line["response_ids"]]
            with torch.no_grad():
                logp = torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0], -1)
            h = -(logp.exp() * logp).sum(-1)[len(line["prompt_ids"]) - 1 : -1].numpy()
            assert by_key[line["problem_id"], line["sample"]] == pytest.approx(h, abs=1e-4)
            entropies.setdefault(name, []).append(h)
    a, b = (np.concatenate(entropies[name]) for name in ("base", "tuned"))
    entropy = told(compared)["entropy"]
    assert entropy["tokens"] == len(a)
    assert entropy["mean"]["change_nats"]["value"] == pytest.approx(float(np.mean(b - a)), abs=1e-5)
    assert entropy["pooled"]["value"]["value"] == pytest.approx(len(top(a) & top(b)) / len(top(b)), abs=1e-9)
    assert entropy["paper_overlap"] == 0.8667


def test_the_weights_that_moved_are_found(compared: Path) -> None:
    weights = told(compared)["weights"]
    moved = {name: t for name, t in weights["tensors"].items() if t["bit_equal"] < 1}
    (t,) = moved.values()
    assert list(moved) == ["model.layers.1.mlp.down_proj.weight"]
    assert t["bit_equal"] == 1 - 4 / 32
    assert t["rank"] == 1 / 32, "the same step everywhere, but for rounding below the tolerance"
    assert weights["stored_dtypes"] == {"F32": weights["total"]["parameters"]}
    assert weights["total"]["unchanged_tensors"] == weights["total"]["tensors"] - 1
    assert "lm_head.weight" not in weights["tensors"]


def test_the_page_shows_what_the_json_has(compared: Path) -> None:
    page, data = (compared / compare.PAGE).read_text(), told(compared)
    assert "<script" not in page
    assert "86.67%" in page
    total = data["weights"]["total"]
    shown = (f"{100 * total['bit_equal']:.2f}%", f"{total['parameters']:,}", "F32", f"{data['entropy']['tokens']:,}")
    assert all(number in page for number in shown)
    for one in data["entropy"]["bins"]:
        assert f"{abs(one['absolute_nats']['value']):.4f}" in page
    assert all(name in page for name in data["weights"]["tensors"])


def test_two_models_are_never_in_memory_at_once(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[Any]] = []
    load = loading.load

    def counted(*given: Any, **named: Any) -> Any:
        gc.collect()
        assert [ref() for ref in alive if ref() is not None] == []
        loaded = load(*given, **named)
        alive.append(weakref.ref(loaded.model))
        return loaded

    monkeypatch.setattr(loading, "load", counted)
    source = Source(
        model=str(folders / "tuned"), problems=str(folders / "set.jsonl"), samples=1, max_tokens=4, prompt="few-shot"
    )
    compare.compare_models(compare.resolve(str(folders / "base"), source), tmp_path / "out")
    assert len(alive) == 2


def test_a_model_with_itself(folders: Path, tmp_path: Path, capsys: Any) -> None:
    status, out, _ = run(capsys, *asked(folders, "base", "base", tmp_path / "out"))
    assert status == 0
    data = told(tmp_path / "out")
    assert data["entropy"]["pooled"]["value"]["value"] == data["entropy"]["per_response"]["value"]["value"] == 1.0
    assert data["entropy"]["absolute_change_nats"]["value"] == 0.0
    total = data["weights"]["total"]
    assert (total["bit_equal"], total["relative_change"], total["rank"], total["matrices"]) == (1.0, 0.0, None, 0)
    assert "100.0% [100.0, 100.0] pooled (chance 20." in out
    assert "stored as F32: 100.00% of" in out


def test_a_stopped_comparison_goes_on_and_ends_the_same(
    folders: Path, compared: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = asked(folders, "base", "tuned", tmp_path / "out")
    steps = {"traces": 4, "scores-tuned": 3, "scores-base": 2, "updates": 5}
    from steerdec.common.journal import Journal

    append = Journal.append
    for name, lines in steps.items():
        seen = []

        def until(self: Any, line: Any, name: str = name, lines: int = lines, seen: list[int] = seen) -> None:
            append(self, line)
            if self._path.stem == name:
                seen.append(1)
                if len(seen) == lines:
                    raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append", until)
            status, _, err = run(capsys, *words)
        assert (status, "stopped; what is done is in" in err) == (130, True), name
        assert not (tmp_path / "out" / compare.JSON).exists()
    assert run(capsys, *words)[0] == 0
    assert told(tmp_path / "out")["entropy"] == told(compared)["entropy"]
    assert told(tmp_path / "out")["weights"] == told(compared)["weights"]
    before = (tmp_path / "out" / "updates.jsonl").read_bytes()
    assert run(capsys, *words)[0] == 0
    assert (tmp_path / "out" / "updates.jsonl").read_bytes() == before, "done, nothing is done again"


def test_without_problems_the_weights_alone_are_compared(folders: Path, tmp_path: Path, capsys: Any) -> None:
    status, out, _ = run(capsys, folders / "base", folders / "tuned", "--out", tmp_path / "out")
    assert status == 0
    data = told(tmp_path / "out")
    assert data["entropy"] is None
    assert data["weights"]["total"]["bit_equal"] < 1
    assert "pooled" not in out
    assert "The same forks?" not in (tmp_path / "out" / compare.PAGE).read_text()


def test_what_cannot_be_compared_is_one_line_and_leaves_nothing(folders: Path, tmp_path: Path, capsys: Any) -> None:
    saved(tiny_model(), tmp_path / "other-words", tiny_tokenizer(("<more>",)))
    saved(tiny_model().bfloat16(), tmp_path / "bf16")
    saved(tiny_model(hidden=64), tmp_path / "wide")
    saved(tiny_model(layers=3), tmp_path / "deep")
    saved(tiny_model(), tmp_path / "no-weights")
    (tmp_path / "no-weights" / "model.safetensors").unlink()
    tiny_model().save_pretrained(tmp_path / "no-tokenizer")
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text('{"model_type": "nobody"}')
    cases = {
        "missing": f"TUNED: {tmp_path}/missing: no such model folder",
        "other-words": "have different tokenizers (1 tokens differ: '<more>' is absent and 257)",
        "bf16": "are stored in different dtypes:",
        "wide": "have different shapes:",
        "deep": "have different tensors: model.layers.2.",
        "no-weights": "holds neither model.safetensors nor",
        "no-tokenizer": f"TUNED: {tmp_path}/no-tokenizer has no readable tokenizer",
        "unknown": "TUNED:",
    }
    out = tmp_path / "out"
    for name, message in cases.items():
        words = (folders / "base", tmp_path / name, "--problems", folders / "set.jsonl", "--prompt", "few-shot")
        status, printed, err = run(capsys, *words, "--out", out)
        assert status == 2, (name, err)
        assert err.count("\n") == 1, err
        assert err.startswith("steerdec: ")
        assert message in err
        assert printed == ""
        assert not out.exists(), name


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--max-tokens", CONTEXT_TOKENS), f"--max-tokens: {CONTEXT_TOKENS} after a prompt of"),
        (("--dtype", "int8"), "--dtype: 'int8' is not one of float32, bfloat16, float16"),
        (("--prompt", "nobody"), "nobody"),
        (("--samples", 0), '"0" is not a whole number from 1 to'),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(
    folders: Path, tmp_path: Path, capsys: Any, more: tuple[object, ...], message: str
) -> None:
    status, _, err = run(capsys, *asked(folders, "base", "tuned", tmp_path / "out", *more))
    assert (status, err.count("\n"), message in err) == (2, 1, True), err
    assert not (tmp_path / "out").exists()


def test_options_of_sampling_need_problems(folders: Path, tmp_path: Path, capsys: Any) -> None:
    status, _, err = run(capsys, folders / "base", folders / "tuned", "--samples", 3, "--out", tmp_path / "out")
    assert (status, err) == (2, "steerdec: --samples goes with --problems\n")


def test_another_comparisons_folder_is_refused(folders: Path, compared: Path, capsys: Any) -> None:
    status, _, err = run(capsys, *asked(folders, "base", "base", compared))
    assert status == 2
    assert "holds an analysis under other settings: model:" in err


def test_a_folder_whose_model_was_trained_on_is_refused(folders: Path, tmp_path: Path, capsys: Any) -> None:
    model = tiny_model(3)
    words = (folders / "base", saved(model, tmp_path / "now"), "--out", tmp_path / "out")
    assert run(capsys, *words)[0] == run(capsys, *words)[0] == 0
    with torch.no_grad():
        model.model.norm.weight[5] += 0.5
    saved(model, tmp_path / "now")
    status, _, err = run(capsys, *words)
    assert status == 2
    assert "holds an analysis under other settings: model_weights:" in err


def test_the_number_of_samples_stands_in_the_help() -> None:
    from steerdec.cli import compare_models as cli_compare

    assert cli_compare.SAMPLES == compare.SAMPLES


def test_a_trace_too_long_for_the_base_is_known_before_sampling(folders: Path, tmp_path: Path) -> None:
    short = tiny_model()
    short.config.max_position_embeddings = 600
    saved(short, tmp_path / "short")
    source = Source(model=str(folders / "tuned"), problems=str(folders / "set.jsonl"), max_tokens=64, prompt="few-shot")
    assert compare.resolve(str(folders / "base"), source).resolved is not None
    with pytest.raises(InputError, match=r"--max-tokens: 64 after a prompt of \d+ tokens; the models take at most 600"):
        compare.resolve(str(tmp_path / "short"), source)
