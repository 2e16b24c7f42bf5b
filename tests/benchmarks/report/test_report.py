"""The report: one page that loads nothing, its Markdown, its figure, and two runs compared."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from steerdec.benchmarks.report import latex, sentences
from steerdec.benchmarks.report.figures import write_figures
from steerdec.benchmarks.report.plots import forest, forest_of_run
from steerdec.benchmarks.report.write import FIGURE, FIGURE_FOR_PAPERS, TABLES, write_report
from steerdec.pages import wording
from steerdec.records.run import SettingsError
from steerdec.records.summary import Summary, read_summary, write_summary
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


def summary(folder: Path) -> Summary:
    return read_summary(folder / "summary.json")


def change_arm(folder: Path, name: str, **changes: Any) -> None:
    """Change one arm of the summary."""
    old = summary(folder)
    arms = old.arms | {name: old.arms[name].model_copy(update=changes)}
    write_summary(old.model_copy(update={"arms": arms}), folder)


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
    told = [sentences.instrument_sentence(summary(run))]
    told += [sentences.claim_sentence(claim, "Qwen3-0.6B and embedded") for claim in summary(run).claims]
    unescaped = re.sub(r"\\(.)", r"\1", markdown(run)).replace("&lt;", "<").replace("&gt;", ">")
    for text in (flat(Page(html(run)).text), flat(unescaped)):
        places = [text.index(flat(sentence)) for sentence in told]
        assert places == sorted(places)


def test_every_number_of_the_summary_is_there(run: Path) -> None:
    text, table = flat(Page(html(run)).text), markdown(run)
    for arm in summary(run).arms.values():
        interval = wording.percent_interval(arm.avg_at_k_ci95)
        numbers = (wording.percent(arm.avg_at_k), interval, wording.number(arm.mean_entropy_nats, 3))
        assert all(number in text and number in table for number in numbers)
    for row in summary(run).comparisons:
        numbers = (wording.points(row.diff), wording.points_interval(row.ci95), wording.p_value(row.p))
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
    change_arm(quick, "F-up", truncation_rate=0.3)
    write_report(quick)
    assert "The token limit cut off 30.0% of the answers of F-up" in Page(html(quick)).text
    assert "The token limit cut off 30.0% of the answers of F-up" in markdown(quick)


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
        assert "includes the dose and what the arm's own text adds; matched doses are equal on" in flat(text)


def test_without_a_dose_grid_the_dose_section_says_so(quick: Path) -> None:
    run = json.loads((quick / "run.json").read_text(encoding="utf-8"))
    run["arms"]["arms"] = [arm for arm in run["arms"]["arms"] if arm["name"] in ("B", "A/A")]
    run["arms"]["claims"] = run["arms"]["comparisons"] = []
    (quick / "run.json").write_text(json.dumps(run), encoding="utf-8")
    lines = (quick / "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = "".join(line for line in lines if json.loads(line)["arm"] in ("B", "A/A"))
    (quick / "samples.jsonl").write_text(kept, encoding="utf-8")
    write_report(quick)
    assert "no group of tokens has 3 or more temperatures" in flat(Page(html(quick)).text)


def test_a_summary_of_unknown_numbers_still_makes_a_report(quick: Path) -> None:
    old = summary(quick)
    counts = ("samples", "missing", "not_needed", "ungraded", "failed_requests")
    known = ("n_problems", "k", "pass_at", "pass_at_k_problems", *counts)
    texts = ("avg_at_k_note", "applied_reason")
    arms = {
        name: arm.model_copy(update={key: None for key in type(arm).model_fields if key not in (*known, *texts)})
        for name, arm in old.arms.items()
    }
    unknown = dict.fromkeys(("diff", "se", "ci95", "p", "p_holm", "p_equivalence", "mde"))
    rows = tuple(row.model_copy(update=unknown) for row in old.comparisons)
    write_summary(old.model_copy(update={"arms": arms, "comparisons": rows}), quick)
    write_report(quick)
    assert Page(html(quick)).unbalanced == []
    assert "None" not in markdown(quick).split("## One trace")[0]


def test_a_run_without_a_single_sample_still_makes_a_report(quick: Path) -> None:
    (quick / "samples.jsonl").write_text("", encoding="utf-8")
    write_report(quick)
    assert "no sample of this run kept" in Page(html(quick)).text


def test_one_sample_of_each_problem_is_one_sample(quick: Path) -> None:
    settings = quick / "run.json"
    settings.write_text(json.dumps(json.loads(settings.read_text("utf-8")) | {"samples": 1}), "utf-8")
    write_report(quick)
    assert "1 samples" not in markdown(quick) + flat(Page(html(quick)).text)
    assert ", 1 sample each, " in markdown(quick)
    assert ", 1 sample each, " in flat(Page(html(quick)).text)


def test_an_interim_report_looks_interim(quick: Path) -> None:
    write_report(quick)
    assert 'class="interim"' not in html(quick)
    change_arm(quick, "B", missing=7)
    write_report(quick)
    text = flat(Page(html(quick)).text)
    assert "Interim: this run is not finished; 7 samples are missing." in text
    assert "Verdicts so far" in text
    assert 'class="interim"' in html(quick)
    assert markdown(quick).startswith("# Interim: ")


def test_the_first_table_has_every_claim_with_its_verdict_points_and_what_it_was_compared_with(run: Path) -> None:
    table = html(run).split("<tbody>")[1].split("</tbody>")[0]
    rows = [flat(Page(row + "</tr>").text) for row in table.split("</tr>") if "<tr>" in row]
    for claim, row in zip(summary(run).claims, rows, strict=True):
        assert claim.statement in row
        assert claim.verdict in row
        if claim.arm is not None:
            assert wording.points(claim.diff) in row
            assert wording.points_interval(claim.ci95) in row
            assert f"{claim.arm} − {claim.baseline}" in row
            assert ("> 0" if claim.direction == "greater" else "< 0") in row


def test_the_report_of_the_same_run_is_the_same_bytes(quick: Path) -> None:
    names = ("report.html", "report.md", FIGURE, FIGURE_FOR_PAPERS, TABLES)
    write_report(quick)
    before = {name: (quick / name).read_bytes() for name in names}
    write_report(quick)
    assert {name: (quick / name).read_bytes() for name in names} == before


def test_the_figures_are_vectors_with_every_difference_and_load_nothing(run: Path) -> None:
    picture = ElementTree.parse(run / FIGURE)
    words = [text.strip() for text in picture.getroot().itertext() if text.strip()]
    for row in summary(run).comparisons:
        assert f"{row.arm} − {row.baseline}" in words
        if row.scope == "problems like these":
            assert wording.points_interval(row.ci95) in words
    links = [value for node in picture.iter() for name, value in node.attrib.items() if name.endswith("href")]
    assert all(value.startswith("#") for value in links)
    assert not {node.tag.rpartition("}")[2] for node in picture.iter()} & {"script", "image", "a", "metadata"}
    assert (run / FIGURE_FOR_PAPERS).read_bytes().startswith(b"%PDF")
    assert max((run / name).stat().st_size for name in (FIGURE, FIGURE_FOR_PAPERS)) < 100_000


def test_a_figure_of_nothing_and_of_odd_names_is_drawn(run: Path, tmp_path: Path) -> None:
    write_figures(forest({}, (), None), tmp_path / "nothing.svg")
    odd = [row.model_copy(update={"arm": "$\\frac", "ci95": None}) for row in summary(run).comparisons]
    drawn = forest_of_run(summary(run).model_copy(update={"comparisons": tuple(odd)}))
    write_figures(drawn, tmp_path / "odd.svg")
    assert "$\\frac" in (tmp_path / "odd.svg").read_text(encoding="utf-8")


def test_the_tables_for_latex_have_every_claim_and_nothing_that_latex_would_run(run: Path) -> None:
    text = (run / TABLES).read_text(encoding="utf-8")
    for claim in summary(run).claims:
        assert latex.escape(claim.statement) in text
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {4, 5}
    assert latex.escape("50% of \\input{x} & $y$") == r"50\% of \textbackslash{}input\{x\} \& \$y\$"


def test_a_folder_that_is_no_run_is_one_plain_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"run.json cannot be read"):
        write_report(tmp_path)
