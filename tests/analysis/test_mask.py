"""Fork masks: which tokens are in, what the files say, and that nothing half-written is taken for a mask."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers
import typer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from steerdec.analysis.masks.run import cut_of, mask_lenses, mask_responses, of_class
from steerdec.analysis.traces.loading import load_tokenizer
from steerdec.analysis.traces.source import Source, resolve
from steerdec.analysis.traces.store import Store, opened, trace_line
from steerdec.analysis.traces.token_classes import CLASSES, token_classes
from steerdec.analysis.traces.trace import Trace
from steerdec.benchmarks.design.masks import read_mask
from steerdec.cli.mask import mask as mask_command
from steerdec.common.errors import InputError
from steerdec.common.files import FileError
from steerdec.common.token_texts import token_texts
from steerdec.records import mask_file
from steerdec.records.calibration import Threshold
from steerdec.records.mask_file import Mask, MaskedRequest, MaskError, load_mask, write_mask
from tests.support.tiny_lm import tiny_lm


def a_request(seed: int = 0, n: int = 9, **changed: Any) -> MaskedRequest:
    rng = np.random.default_rng(seed)
    score = rng.random(n).astype(np.float32)
    request = MaskedRequest(
        problem_id=f"p-{seed}",
        arm="B",
        sample=seed,
        prompt_ids=(1, 2, seed),
        token_ids=rng.integers(0, 99, n).astype(np.int32),
        entropy_nats=rng.random(n).astype(np.float32),
        score=score,
        fork=score > 0.7,
        ids_are="sampled",
        answer=None if seed % 2 else "4",
        grade="correct",
    )
    return replace(request, **changed)


def same(a: MaskedRequest, b: MaskedRequest) -> bool:
    return all(
        np.array_equal(x, y, equal_nan=x.dtype == np.float32) if isinstance(x, np.ndarray) else x == y
        for x, y in ((getattr(a, name), getattr(b, name)) for name in vars(a))
    )


# Which tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 7, 100, 1003])
def test_the_cut_lets_exactly_the_share_through(n: int, share: float) -> None:
    scores = np.random.default_rng(n).permutation(n).astype(np.float32)
    parts = np.array_split(scores, 3)
    cut = cut_of(parts, share)
    taken = scores >= cut
    assert taken.sum() == max(1, round(share * n))
    assert min(scores[taken]) > max(scores[~taken], default=-1)


def test_ties_with_the_last_are_all_in_and_missing_scores_are_not_counted() -> None:
    scores = np.array([3, 1, 1, 1, 0, 0, 0, 0, 0, 0, *[np.nan] * 40], np.float32)
    assert cut_of([scores], 0.2) == 1.0  # two of ten; the second is one of three ones
    assert int((scores >= 1.0).sum()) == 4


def test_no_score_at_all_is_one_line() -> None:
    with pytest.raises(InputError, match="no token has a score"):
        cut_of([np.full(3, np.nan, np.float32)], 0.2)


# The files ---------------------------------------------------------------------------------------


def test_a_mask_comes_back_as_it_was_over_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_file, "ROW_GROUP_TOKENS", 20)
    requests = [a_request(i, n=1 + i % 12) for i in range(30)]
    requests[4] = replace(requests[4], score=np.full(5, np.nan, np.float32), fork=np.zeros(5, np.bool_))
    told = write_mask(tmp_path, iter(requests), {"lens": "entropy"})
    assert pq.ParquetFile(tmp_path / "mask.parquet").num_row_groups > 5
    found = load_mask(tmp_path)
    assert found.about == told == json.loads((tmp_path / "mask.json").read_bytes())
    assert len(found.requests) == 30
    assert all(same(a, b) for a, b in zip(requests, found.requests, strict=True))
    assert told["tokens"] == sum(len(r.fork) for r in requests)
    assert told["forks"] == sum(int(r.fork.sum()) for r in requests)
    assert told["fork_share"] == told["forks"] / told["tokens"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mask.json", "mask.parquet", "requests.parquet"]


def test_the_columns_are_those_that_the_docs_name(tmp_path: Path) -> None:
    write_mask(tmp_path, [a_request()], {})
    tokens, rows = (pq.read_schema(tmp_path / name) for name in ("mask.parquet", "requests.parquet"))
    assert {f.name: str(f.type) for f in tokens} == {
        "request": "int64",
        "position": "int32",
        "token": "int32",
        "entropy_nats": "float",
        "fork": "bool",
        "score": "float",
    }
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text("utf-8")
    for name in (*tokens.names, *rows.names):
        assert f"`{name}`" in page


def test_a_failed_write_leaves_the_mask_that_was_there(tmp_path: Path) -> None:
    write_mask(tmp_path, [a_request()], {})

    def failing() -> Iterator[MaskedRequest]:
        yield a_request(1)
        raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match="cannot be written"):
        write_mask(tmp_path, failing(), {})
    assert same(load_mask(tmp_path).requests[0], a_request())
    assert not list(tmp_path.glob("*.new"))


def test_files_of_two_masks_are_no_mask(tmp_path: Path) -> None:
    """As a kill between the files leaves it."""
    for seed, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_mask(tmp_path / name, [a_request(seed)], {})
    (tmp_path / "b" / "mask.parquet").replace(tmp_path / "a" / "mask.parquet")
    with pytest.raises(MaskError, match=r"is not the file described by mask\.json"):
        load_mask(tmp_path / "a")


def with_new_digest(folder: Path) -> None:
    """As somebody does who edits a Parquet file and the digest with it."""
    import hashlib

    about = json.loads((folder / "mask.json").read_bytes())
    about["sha256"] = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in about["sha256"]}
    (folder / "mask.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.drop_columns(["fork"]), "has columns request, position, token, entropy_nats, score; it needs"),
        (lambda t: t.slice(1), "other numbers of tokens"),
        (lambda t: t.take(list(range(t.num_rows))[::-1]), "other numbers of tokens"),
        (lambda t: t.take([1, 0, *range(2, t.num_rows)]), "`position` does not count"),
    ],
)
def test_rows_that_do_not_fit_together_are_one_line(tmp_path: Path, edit: Any, message: str) -> None:
    write_mask(tmp_path, [a_request(0), a_request(1)], {})
    pq.write_table(edit(pq.read_table(tmp_path / "mask.parquet")), tmp_path / "mask.parquet")
    with_new_digest(tmp_path)
    with pytest.raises(MaskError, match=message):
        load_mask(tmp_path)


def test_what_is_no_mask_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="cannot be read"):
        load_mask(tmp_path)
    (tmp_path / "mask.json").write_text("{")
    with pytest.raises(MaskError, match="is not JSON"):
        load_mask(tmp_path)
    (tmp_path / "mask.json").write_text('{"format": 2, "sha256": {}}')
    with pytest.raises(MaskError, match="format 1"):
        load_mask(tmp_path)


# The command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_lm(tmp_path_factory.mktemp("tiny") / "model")


def made(model: Path, out: Path, **how: Any) -> Mask:
    asked = Source(model=str(model), problems="embedded", limit=3, samples=2, max_tokens=40, temperature=1.0)
    mask_responses(resolve(asked), out, **how)
    return load_mask(out)


def test_a_mask_of_sampled_responses_has_the_highest_entropies_of_all(model: Path, tmp_path: Path) -> None:
    found = made(model, tmp_path / "m", share=0.2)
    h = np.concatenate([r.entropy_nats for r in found.requests])
    fork = np.concatenate([r.fork for r in found.requests])
    assert len(found.requests) == 6
    assert fork.sum() == found.about["forks"] == round(0.2 * len(h))
    assert h[fork].min() > h[~fork].max()
    assert found.about["cut"] == float(h[fork].min())
    shares = [float(r.fork.mean()) for r in found.requests]
    assert len(set(shares)) > 1  # over all tokens, not in each response
    traces = [json.loads(line) for line in (tmp_path / "m" / "traces.jsonl").read_text().splitlines()]
    by_key = {(t["problem_id"], t["sample"]): t for t in traces}
    for request in found.requests:
        trace = by_key[request.problem_id, request.sample]
        assert request.token_ids.tolist() == trace["response_ids"]
        assert list(request.prompt_ids) == trace["prompt_ids"]
    about = found.about
    assert (about["lens"], about["share"], about["prompt"]) == ("entropy", 0.2, "few-shot")
    assert about["problems"]["name"] == "embedded"
    assert len(about["problems"]["sha256"]) == 64


def test_another_threshold_scores_nothing_again(model: Path, tmp_path: Path) -> None:
    first = made(model, tmp_path / "m", share=0.2)
    scores = tmp_path / "m" / "scores.jsonl"
    before = scores.stat().st_mtime_ns
    second = made(model, tmp_path / "m", threshold=Threshold(1.25, "given"))
    assert scores.stat().st_mtime_ns == before
    assert second.about["share"] is None
    assert (second.about["threshold_nats"], second.about["cut"]) == (1.25, 1.25)
    for a, b in zip(first.requests, second.requests, strict=True):
        assert np.array_equal(b.fork, a.entropy_nats > 1.25)


def test_a_mask_of_a_class_has_ones_there_and_its_other_positions_are_exactly_the_rest(
    model: Path, tmp_path: Path
) -> None:
    found = made(model, tmp_path / "m", tokens="word start")
    assert (found.about["lens"], found.about["share"], found.about["threshold_nats"]) == (
        "word start tokens",
        None,
        None,
    )
    for request in found.requests:
        texts = token_texts(request.token_ids.tolist(), load_tokenizer(str(model)))
        assert request.fork.tolist() == [c == "word start" for c in token_classes(texts)]
        assert np.array_equal(request.score, request.fork.astype(np.float32))
    traces = [trace for of_problem in read_mask(tmp_path / "m").traces.values() for trace in of_problem]
    assert len(traces) == len(found.requests)
    for trace in traces:
        forks, others = trace.positions("fork"), trace.positions("other")
        assert len(forks) > 0
        assert len(others) > 0
        assert np.array_equal(np.sort(np.concatenate([forks, others])), trace.positions("any"))


def test_another_class_scores_nothing_again_and_shares_no_token(model: Path, tmp_path: Path) -> None:
    made(model, tmp_path / "m", share=0.2)
    scores = tmp_path / "m" / "scores.jsonl"
    before = scores.stat().st_mtime_ns
    whole = [made(model, tmp_path / "m", tokens=tokens) for tokens in CLASSES]
    assert scores.stat().st_mtime_ns == before
    for requests in zip(*(mask.requests for mask in whole), strict=True):
        assert (np.sum([request.fork for request in requests], axis=0) == 1).all()


def test_digits_of_the_embedded_model_s_tokenizer(weights: Path) -> None:
    """It writes a number digit by digit, and the space before it as a token of its own."""
    tokenizer = load_tokenizer(str(weights))
    ids = [*tokenizer("So 12 + x3 = 1,000.5").input_ids, tokenizer.eos_token_id]
    assert pieces(tokenizer, ids, "digit") == ["1", "2", "3", "1", "0", "0", "0", "5"]
    assert pieces(tokenizer, ids, "operator") == [" +", " ="]  # and not the end token, "<|im_end|>"
    assert sum(of_class(ids, name, tokenizer).sum() for name in CLASSES) == len(ids) - 1


def test_digits_of_a_tokenizer_that_keeps_the_space_before_a_number() -> None:
    """As GPT-2's does, trained here on a line."""
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|step_1|>"],
        show_progress=False,
    )
    core.train_from_iterator(["so 12 and 12, so 12 and 450 and 450; 12 so 450"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|step_1|>")
    ids = [*tokenizer("so 12 and 450, 7").input_ids, tokenizer.eos_token_id]
    assert pieces(tokenizer, ids, "digit") == [" 12", " 450", "7"]  # and not the end token, which has a digit in it
    assert pieces(tokenizer, ids, "word start") == ["so", " and", " "]


def pieces(tokenizer: Any, ids: list[int], tokens: str) -> list[str]:
    """Texts of the tokens of that class."""
    return [tokenizer.decode([i]) for i, one in zip(ids, of_class(ids, tokens, tokenizer), strict=True) if one]


def lens_folder(folder: Path) -> Path:
    """What `steerdec lenses` leaves, as far as a mask reads it."""
    settings = {
        "analysis": "lenses",
        "model": "M",
        "dtype": "float32",
        "problems": "embedded",
        "problems_sha256": "ab",
        "prompt": "number",
    }
    with opened(folder, settings) as kept:
        fill(kept)
    return folder


def fill(kept: Store) -> None:
    with kept.appending("traces") as traces, kept.appending("lenses") as lenses:
        for i in range(3):
            trace = Trace(
                f"p{i}", "sampled", 5, (7, 8), tuple(range(10 * i, 10 * i + 8)), "4", "number", "4", "correct", "stop",
                "x", "sampled",
            )  # fmt: skip
            traces.append(trace_line(trace))
            record: dict[str, Any] = {"problem_id": f"p{i}", "arm": "lenses", "sample": 5, "error": None}
            scores = {"entropy": [0.1 * i, 0.5, 1.5, 0.2, 2.5], "hsic": [5.0 - i, 4.0, None, 2.0, 1.0 + i]}
            if i == 2:
                scores.pop("hsic")
            lenses.append(record | {"tokens": ["a"] * 5, "scores": scores})
        lenses.append({"problem_id": "p3", "arm": "lenses", "sample": -1, "error": None, "skipped": "too short"})


def test_a_mask_by_a_lens_takes_the_chain_s_tokens_from_the_samples(tmp_path: Path) -> None:
    told = mask_lenses(lens_folder(tmp_path / "lenses"), "hsic", tmp_path / "m", share=0.25)
    found = load_mask(tmp_path / "m")
    assert [r.problem_id for r in found.requests] == ["p0", "p1"]
    assert [r.token_ids.tolist() for r in found.requests] == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]
    assert [r.prompt_ids for r in found.requests] == [(7, 8), (7, 8)]
    assert found.requests[0].entropy_nats.tolist() == pytest.approx([0.0, 0.5, 1.5, 0.2, 2.5])
    assert np.isnan(found.requests[0].score[2])
    # a quarter of the eight tokens that have a score is two: 5, then the three fours
    assert [r.fork.tolist() for r in found.requests] == [
        [True, True, False, False, False],
        [True, True, False, False, False],
    ]
    assert (told["lens"], told["left_out"], told["model"], told["prompt"]) == ("hsic", 2, "M", "number")


@pytest.mark.parametrize(
    ("lens", "how", "message"),
    [
        ("magic", {"share": 0.2}, "has no score 'magic'; it has entropy, hsic"),
        ("hsic", {"threshold": Threshold(1.0, "given")}, "--threshold applies to entropies"),
    ],
)
def test_a_lens_that_cannot_be_used_is_one_line(tmp_path: Path, lens: str, how: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        mask_lenses(lens_folder(tmp_path / "lenses"), lens, tmp_path / "m", **how)
    assert not (tmp_path / "m").exists()


def test_a_lens_record_of_other_samples_is_one_line(tmp_path: Path) -> None:
    folder = lens_folder(tmp_path / "lenses")
    lines = (folder / "traces.jsonl").read_text().splitlines(keepends=True)
    (folder / "traces.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(InputError, match="does not have the 5 tokens of problem p0, sample 5"):
        mask_lenses(folder, "entropy", tmp_path / "m", share=0.2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either RUN"),
        (["--model", "M", "--problems", "embedded", "--share", "0.2", "--threshold", "1"], "give one of --share"),
        (["--model", "M", "--problems", "embedded", "--tokens", "digit", "--share", "0.2"], "give one of --share"),
        (["--model", "M", "--problems", "embedded", "--tokens", "number"], "'number' is not one of digit, operator"),
        (["--lenses", "no-folder", "--tokens", "digit"], "--tokens cannot be used with --lenses"),
        (["--model", "M", "--problems", "embedded", "--lens", "hsic"], "--lens goes with --lenses"),
        (["--lenses", "no-folder", "--samples", "3"], "--samples cannot be used with --lenses"),
        (["--lenses", "no-folder"], "cannot be read"),
        (["--model", "M", "--problems", "embedded", "--threshold", "-1"], "is not an entropy"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(tmp_path: Path, words: list[str], message: str) -> None:
    app = typer.Typer()
    app.command()(mask_command)
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "m")])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "m").exists()
