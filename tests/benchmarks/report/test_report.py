"""The report: one page that loads nothing, its Markdown, its figure, and two runs compared."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from steerdec.benchmarks.report.write import FIGURE_NAME, ReportError, write_comparison, write_figure, write_report
from steerdec.pages import wording
from tests.support.make_run import HOSTILE, make_run

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Text, tags and attributes of a page; `unbalanced` lists end tags that close nothing."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.unbalanced = "", [], []  # type: ignore[var-annotated]
        self.attributes: list[tuple[str, str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.unbalanced += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += " " if tag in ("td", "th", "li", "p", "dt", "dd", "div") else ""
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="module", params=["quick", "figure3", "causal"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("report") / "run", arm_set=request.param, n_problems=10, k=4)
    write_report(folder)
    return folder


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", n_problems=6, k=2)


def html(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def markdown(folder: Path) -> str:
    return (folder / "report.md").read_text(encoding="utf-8")


def summary(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return value


def flat(text: str) -> str:
    return " ".join(text.split())


def rewrite_samples(folder: Path, change: Any) -> None:
    path = folder / "samples.jsonl"
    lines = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_the_page_loads_nothing(run: Path) -> None:
    page = Page(html(run))
    loading = [(tag, name, value) for tag, name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert all(value.startswith("#") for _, _, value in loading)
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(page.tags)
    style = html(run).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_is_balanced_and_every_link_inside_it_leads_somewhere(run: Path) -> None:
    page = Page(html(run))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert page.unbalanced == []
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in page.attributes if name == "href"}
    targets |= {value for _, name, value in page.attributes if name == "aria-labelledby"}
    assert targets <= set(ids)


def test_what_a_model_wrote_is_shown_and_never_run(run: Path) -> None:
    page = Page(html(run))
    assert page.tags.count("script") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in page.text


def test_only_our_script_is_allowed_by_its_hash(run: Path) -> None:
    script = html(run).split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html(run)


def test_every_verdict_is_there_as_a_sentence_the_instrument_first(run: Path) -> None:
    told = [wording.instrument_sentence(summary(run))]
    told += [wording.claim_sentence(claim, "Qwen3-0.6B and embedded") for claim in summary(run)["claims"]]
    unescaped = re.sub(r"\\(.)", r"\1", markdown(run)).replace("&lt;", "<").replace("&gt;", ">")
    for text in (flat(Page(html(run)).text), flat(unescaped)):
        places = [text.index(flat(sentence)) for sentence in told]
        assert places == sorted(places)


def test_every_number_of_the_summary_is_there(run: Path) -> None:
    text, table = flat(Page(html(run)).text), markdown(run)
    for arm in summary(run)["arms"].values():
        interval = wording.percent_interval(arm["avg_at_k_ci95"])
        numbers = (wording.percent(arm["avg_at_k"]), interval, wording.number(arm["mean_entropy_nats"], 3))
        assert all(number in text and number in table for number in numbers)
    for row in summary(run)["comparisons"]:
        numbers = (wording.points(row["diff"]), wording.points_interval(row["ci95"]), wording.p_value(row["p"]))
        assert all(number in text and number.replace("<", "&lt;") in table for number in numbers)


def test_every_table_of_the_markdown_has_rows_of_one_width(run: Path) -> None:
    prose = re.sub(r"(`{3,}).*?\n\1", "", markdown(run), flags=re.DOTALL)
    tables = re.findall(r"(?:^\|.*\n)+", prose, flags=re.MULTILINE)
    assert len(tables) >= 8
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_model_text_cannot_leave_its_code_block(run: Path) -> None:
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown(run), flags=re.DOTALL | re.MULTILINE)
    assert "<script>" in markdown(run)
    assert "<" not in outside


def test_the_dose_section_lists_the_papers_fifteen_labels_and_says_what_is_not_known(run: Path) -> None:
    for text in (flat(Page(html(run)).text), flat(markdown(run))):
        assert "72.22, 71.67, 71.67, 71.11" in text
        assert "does not say which label belongs to which point" in text


def test_every_setting_of_the_run_stands_in_the_provenance(run: Path) -> None:
    text = Page(html(run)).text
    for value in ("c1899de289a04d12100db370d81485cdf75e47ca", "9f86d081884c7d659a2feaa0c55ad015", "repetition_penalty"):
        assert value in text
    for page in (text, markdown(run)):
        assert "steerdec bench run --repeat run.json --out DIR" in page


def test_many_cut_answers_are_told_with_what_helps(quick: Path) -> None:
    summary = json.loads((quick / "summary.json").read_text(encoding="utf-8"))
    summary["arms"]["F-up"]["truncation_rate"] = 0.3
    (quick / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    write_report(quick)
    assert "The token limit cut 30.0% of the answers of F-up" in Page(html(quick)).text
    assert "The token limit cut 30.0% of the answers of F-up" in markdown(quick)


def test_ungraded_samples_show_in_the_cells_of_their_problem(run: Path) -> None:
    assert Page(html(run)).text.count("+2?") == 3 + 1  # three problems and the legend


def test_without_per_token_lists_the_sections_say_why_they_are_left_out(quick: Path) -> None:
    lists = ("entropy_nats", "fork", "token_text")
    rewrite_samples(quick, lambda line: {key: value for key, value in line.items() if key not in lists})
    write_report(quick)
    assert Page(html(quick)).text.count("no sample of this run kept its per-token lists") == 3
    assert markdown(quick).count("no sample of this run kept its per-token lists") == 3


def test_without_token_text_the_histogram_stays(quick: Path) -> None:
    rewrite_samples(quick, lambda line: {key: value for key, value in line.items() if key != "token_text"})
    write_report(quick)
    text = Page(html(quick)).text
    assert text.count("the samples with per-token lists kept no token text") == 2
    assert "counts on a log axis" in text


def test_a_trace_under_one_arm_alone_is_shown_with_the_reason(quick: Path) -> None:
    def only_identity(line: dict[str, Any]) -> dict[str, Any]:
        return line if line["arm"] == "A/A" else {k: v for k, v in line.items() if k != "entropy_nats"}

    rewrite_samples(quick, only_identity)
    write_report(quick)
    assert "no sample kept its tokens under two arms, so this is the first of arm A/A alone" in flat(
        Page(html(quick)).text
    )


def test_the_shift_on_an_arms_own_text_is_not_called_its_dose(run: Path) -> None:
    for text in (Page(html(run)).text, markdown(run)):
        assert "shift holds the dose and what the arm's own text adds; matched doses are equal on" in flat(text)


def test_without_a_dose_grid_the_dose_section_says_so(quick: Path) -> None:
    run = json.loads((quick / "run.json").read_text(encoding="utf-8"))
    run["arms"]["arms"] = [arm for arm in run["arms"]["arms"] if arm["name"] in ("B", "A/A")]
    (quick / "run.json").write_text(json.dumps(run), encoding="utf-8")
    write_report(quick)
    assert "no group of tokens was given 3 or more temperatures" in flat(Page(html(quick)).text)


def test_a_summary_of_unknown_numbers_still_makes_a_report(quick: Path) -> None:
    value = summary(quick)
    for arm in value["arms"].values():
        arm |= {key: None for key in arm if key not in ("n_problems", "k", "ungraded", "missing")}
    for row in value["comparisons"]:
        row |= dict.fromkeys(("diff", "se", "ci95", "p", "p_holm", "p_equivalence", "mde"))
    (quick / "summary.json").write_text(json.dumps(value), encoding="utf-8")
    write_report(quick)
    assert Page(html(quick)).unbalanced == []
    assert "None" not in markdown(quick).split("## One trace")[0]


def test_a_run_without_a_single_sample_still_makes_a_report(quick: Path) -> None:
    (quick / "samples.jsonl").write_text("", encoding="utf-8")
    write_report(quick)
    assert "no sample of this run kept" in Page(html(quick)).text


def test_an_unfinished_run_is_called_so(quick: Path) -> None:
    value = summary(quick)
    value["arms"]["B"]["missing"] = 7
    (quick / "summary.json").write_text(json.dumps(value), encoding="utf-8")
    write_report(quick)
    assert "This run is not finished: 7 samples" in Page(html(quick)).text


def test_the_report_of_the_same_run_is_the_same_bytes(quick: Path) -> None:
    write_report(quick)
    before = {name: (quick / name).read_bytes() for name in ("report.html", "report.md", FIGURE_NAME)}
    write_report(quick)
    assert {name: (quick / name).read_bytes() for name in before} == before


def test_the_figure_is_a_picture_of_sane_size_that_grows_with_its_rows(run: Path, tmp_path: Path) -> None:
    image = matplotlib.image.imread(run / FIGURE_NAME)
    height, width = image.shape[:2]
    assert width == 1600
    assert 600 < height < 3000
    assert 0.02 < float((image[..., :3].min(axis=2) < 0.95).mean()) < 0.5  # something is drawn, and little of it
    one = summary(run) | {"comparisons": summary(run)["comparisons"][:2]}
    write_figure(one, tmp_path / "one.png")
    assert matplotlib.image.imread(tmp_path / "one.png").shape[0] < height


def test_a_figure_of_nothing_and_of_odd_names_is_drawn(run: Path, tmp_path: Path) -> None:
    nothing = {"comparisons": [], "delta": None}
    write_figure(nothing, tmp_path / "nothing.png")
    odd = [row | {"arm": "$\\frac", "ci95": None} for row in summary(run)["comparisons"]]
    write_figure({"comparisons": odd, "delta": 0.02}, tmp_path / "odd.png")
    assert (tmp_path / "odd.png").stat().st_size > 5000


def test_a_comparison_shows_both_runs_on_one_axis(quick: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", arm_set="causal", n_problems=6, k=2, seed=5)
    path = write_comparison(quick, other, tmp_path / "out" / "compare.html")
    page = Page(path.read_text(encoding="utf-8"))
    text = flat(page.text)
    assert page.unbalanced == []
    assert "script" not in page.tags
    assert "Qwen3-0.6B on embedded (A)" in text
    assert "not in this run" in text
    for folder in (quick, other):
        for row in summary(folder)["comparisons"]:
            if row["scope"] == "problems like these":
                assert wording.points_interval(row["ci95"]) in text


def test_a_claim_of_one_id_and_two_statements_is_two_claims(quick: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(quick, other)
    value = summary(other)
    value["claims"][0] |= {"statement": "Something else.", "verdict": "fails"}
    (other / "summary.json").write_text(json.dumps(value), encoding="utf-8")
    text = flat(Page(write_comparison(quick, other, tmp_path / "c.html").read_text(encoding="utf-8")).text)
    assert "Something else. not claimed fails" in text


def test_a_folder_that_is_no_run_is_one_plain_line(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"run.json is missing"):
        write_report(tmp_path)
