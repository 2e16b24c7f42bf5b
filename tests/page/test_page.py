"""The page at `/`, in a real browser (Debian: apt-get install -y chromium chromium-driver).

Most tests run against `tests/page/stub_server.py`, which can do what an engine cannot be asked for: break off, err in
the middle, split a character. The everyday path also runs against a real server when STEERDEC_PAGE_URL holds its
address (and STEERDEC_PAGE_KEY its key, if it has one).
"""

from __future__ import annotations

import base64
import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from steerdec.policies.registry import POLICIES
from steerdec.steering.params import Select
from tests.page import stub_server
from tests.page.browser import CONTRAST, NARROW, NARROWEST, OUTSIDE, WIDE, Page
from tests.page.stub_server import CALIBRATED_THRESHOLD_NATS, PARTING_NATS, START, Stub, Token, tokens_of

AWKWARD = """It's "5 > 3" & `date` $HOME \\n \\ 100% !x # {"a": [1]}
second line — naïve 🙂 'quoted'"""


@pytest.fixture(scope="session")
def stub() -> Iterator[Stub]:
    stub = Stub()
    yield stub
    stub.stop()


@pytest.fixture
def page(chrome: Chrome, stub: Stub) -> Page:
    stub.requests.clear()
    return Page(chrome, stub.url)


def forks_of(tokens: list[Token], threshold_nats: float) -> list[int]:
    return [i for i, token in enumerate(tokens) if token.entropy_nats > threshold_nats]


def scripted(arm: str) -> list[Token]:
    t = 1.2 if arm == "steered" else 0.7
    return stub_server.script(stub_server.Split(fork_temperature=t, other_temperature=0.7), 0.7)


# ---- the everyday path, on the stub and on a real server --------------------------------------------------------


def test_two_arms_stream_in_with_entropies_forks_and_nothing_on_the_console(chrome: Chrome, stub: Stub) -> None:
    page = Page(chrome, os.environ.get("STEERDEC_PAGE_URL", stub.url))
    if key := os.environ.get("STEERDEC_PAGE_KEY"):
        page.set("api_key", key)
        page.log()  # the browser notes the refusals from before the key
    everyday_path(page)


def everyday_path(page: Page) -> None:
    """Press Generate, see two arms; also what tests/page/test_page_real.py does."""
    page.set("max_tokens", 48)
    page.set("threshold_nats", 0.5)
    page.generate(timeout_s=300)

    assert page.error == ""
    for arm in ("baseline", "steered"):
        texts = page.texts(arm)
        assert len(texts) > 8
        stats = re.search(r"(\d+) tokens · (\d+) forks \(([\d.]+)%\)", page.text(f".{arm} .stats"))
        assert stats is not None
        tokens, forks, share = stats.groups()
        assert int(tokens) == len(texts)  # one span a token: logprobs and entropies were aligned
        assert int(forks) == len(page.find(f".{arm} .tok.fork"))
        assert float(share) == pytest.approx(100 * int(forks) / int(tokens), abs=0.051)
        heats = page.js(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((n) => parseFloat(n.style.getPropertyValue('--heat')))",
            f".{arm} .tok",
        )
        assert min(heats) < 20 < max(heats)
    assert page.text("#parting")
    if "part at" in page.text("#parting"):
        a, b = page.texts("baseline"), page.texts("steered")
        first = next(i for i in range(len(a)) if a[i : i + 1] != b[i : i + 1])
        assert page.indices(".tokens .first") == [first, first]
    loaded = page.js("return performance.getEntriesByType('resource').map((r) => new URL(r.name).origin)")
    assert set(loaded) == {page.js("return location.origin")}
    assert page.log() == []


@pytest.mark.parametrize("mode", ["chat", "completion"])
def test_both_endpoints_show_the_scripted_tokens_and_forks(page: Page, stub: Stub, mode: str) -> None:
    page.one(f"input[name=mode][value={mode}]").find_element(By.XPATH, "..").click()
    page.generate("scripted")
    assert {r["path"] for r in stub.requests} == {"/v1/chat/completions" if mode == "chat" else "/v1/completions"}
    for arm in ("baseline", "steered"):
        assert page.texts(arm) == [t.text for t in scripted(arm)]
        assert page.indices(f".{arm} .tok.fork") == forks_of(scripted(arm), CALIBRATED_THRESHOLD_NATS)


def test_the_arms_share_seed_and_prompt_and_the_baseline_leaves_every_temperature_alone(page: Page, stub: Stub) -> None:
    page.set("seed", 7)
    page.set("temperature", 0.9)
    page.generate("scripted")
    baseline, steered = sorted((r["body"] for r in stub.requests), key=lambda body: len(body["steering"]))
    shared = {"policy": "split", "select": "entropy", "threshold_nats": 0.5, "scope": "all", "telemetry": "tokens"}
    assert baseline["steering"] == shared
    assert steered["steering"] == shared | {"fork_temperature": 1.2}
    assert baseline["temperature"] == 0.9
    assert baseline["seed"] == 7
    assert {k: v for k, v in baseline.items() if k != "steering"} == {
        k: v for k, v in steered.items() if k != "steering"
    }


def test_the_first_differing_token_is_ringed_in_both_arms_and_named(page: Page) -> None:
    page.generate("scripted")
    at = len(tokens_of(START, 1))
    assert page.indices(".tokens .first") == [at, at]
    assert page.text("#parting") == (
        f"The arms part at token {at + 1}: “␣can” in the baseline, “␣could” in the steered arm, "
        f"where H is {PARTING_NATS} nats."
    )
    page.one("#parting button").click()
    assert page.js("return document.activeElement.className").split() == ["tok", "text", "fork", "first"]


def test_arms_without_a_difference_say_so(page: Page) -> None:
    page.set("max_tokens", 5)
    page.generate("scripted")
    assert page.text("#parting") == "Both arms sampled the same 5 tokens."
    assert page.find(".tokens .first") == []


def test_steering_off_runs_one_measured_arm(page: Page, stub: Stub) -> None:
    page.one("input[name=steering]").click()
    page.generate("scripted")
    assert len(stub.requests) == 1
    assert len(page.find(".baseline .tok")) == len(scripted("baseline"))
    assert not page.one(".arm.steered").is_displayed()
    assert page.text("#parting") == ""


@pytest.mark.parametrize(("select", "field"), [("random", "fork_rate"), ("first", "first_tokens"), ("all", None)])
def test_other_ways_to_choose_forks_send_what_the_server_takes_and_show_its_marks(
    page: Page, stub: Stub, select: str, field: str | None
) -> None:
    page.one(f"input[name=select][value={select}]").find_element(By.XPATH, "..").click()
    assert not page.one("#threshold_nats").is_displayed()
    assert page.one(".threshold").get_attribute("aria-disabled") == "true"
    page.generate("scripted")
    assert page.error == ""  # the stub parses steering as the server does
    assert all(r["body"]["steering"]["select"] == select for r in stub.requests)
    assert all((field in r["body"]["steering"]) for r in stub.requests) if field else True
    expected = [i for i, t in enumerate(scripted("steered")) if select == "all" or len(t.text) % 4 == 0]
    assert page.indices(".steered .tok.fork") == expected


# ---- the threshold line ------------------------------------------------------------------------------------------


def test_the_line_starts_at_the_servers_calibration(page: Page) -> None:
    assert page.one("#threshold_nats").get_attribute("value") == str(CALIBRATED_THRESHOLD_NATS)
    assert float(page.one("[role=slider]").get_attribute("aria-valuenow")) == CALIBRATED_THRESHOLD_NATS


def test_keys_on_the_line_mark_forks_anew_and_the_next_run_uses_it(page: Page, stub: Stub) -> None:
    page.generate("scripted")
    line = page.one("[role=slider]")
    threshold_nats = CALIBRATED_THRESHOLD_NATS
    for key, step in [(Keys.ARROW_RIGHT, 0.01), (Keys.ARROW_LEFT, -0.01), (Keys.PAGE_UP, 0.1), (Keys.ARROW_UP, 0.01)]:
        line.send_keys(key)
        threshold_nats = round(threshold_nats + step, 2)
        assert float(line.get_attribute("aria-valuenow")) == threshold_nats
        assert page.indices(".baseline .tok.fork") == forks_of(scripted("baseline"), threshold_nats)
    assert page.one("#threshold_nats").get_attribute("value") == "0.61"
    share = len(forks_of(scripted("steered"), 0.61)) / len(scripted("steered"))
    assert f"{100 * share:.1f}% of steered tokens" in page.text("#rates")
    assert f"{100 * share:.1f}% of steered tokens" in line.get_attribute("aria-valuetext")
    assert "used 0.50 nats" in page.text("#stale")

    line.send_keys(Keys.END)
    assert page.find(".tokens .fork") == []
    line.send_keys(Keys.HOME)
    assert len(page.find(".baseline .fork")) == len(scripted("baseline"))

    page.set("threshold_nats", 0.61)
    stub.requests.clear()
    page.generate()
    assert {r["body"]["steering"]["threshold_nats"] for r in stub.requests} == {0.61}
    assert not page.one("#stale").is_displayed()


def test_dragging_the_line_marks_forks_anew(page: Page) -> None:
    page.generate("scripted")
    line = page.one("[role=slider]")
    seen = [CALIBRATED_THRESHOLD_NATS]
    for dx_px in (120, -400):
        ActionChains(page.driver).click_and_hold(line).move_by_offset(dx_px, 0).perform()
        seen.append(float(line.get_attribute("aria-valuenow")))
        assert page.indices(".steered .tok.fork") == forks_of(scripted("steered"), seen[-1])  # not let go yet
        ActionChains(page.driver).release().perform()
    assert seen[2] < seen[0] < seen[1]
    assert page.one("#threshold_nats").get_attribute("value") == str(seen[2])
    ActionChains(page.driver).move_by_offset(50, 0).perform()
    assert float(line.get_attribute("aria-valuenow")) == seen[2]  # it was let go


def test_the_axis_and_its_inverse_agree(page: Page) -> None:
    error = page.js(
        "return import('/page/scale.js').then(({axis, axisInverse}) => Math.max(...[0, 1e-4, 0.01, 0.5, 0.672, 3, 8]"
        ".map((h) => Math.abs(axisInverse(axis(h)) - h))))"
    )
    assert error < 1e-9


# ---- one token's numbers -----------------------------------------------------------------------------------------


def test_pointing_at_a_token_shows_its_numbers(page: Page) -> None:
    page.generate("scripted")
    token = page.one(".steered .tok.first")
    page.js("arguments[0].scrollIntoView({block: 'center'})", token)
    ActionChains(page.driver).move_to_element(token).perform()
    shown = page.text("#inspector")
    for part in ("␣could", "fork", f"{PARTING_NATS} nats", "1.2", "30.0%", "␣need", "40.0%"):
        assert part in shown
    assert "Rank2" in shown  # " need" was likelier
    ActionChains(page.driver).move_to_element(page.one("#prompt")).perform()
    assert not page.one("#inspector").is_displayed()


FOCUSED = "const a = document.activeElement; return a.id || a.name || a.dataset.copy || a.className.split(' ')[0]"


def test_everything_works_by_keyboard(page: Page) -> None:
    page.one("#prompt").send_keys(" ")
    page.one("#prompt").send_keys(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.one("#generate").text == "Generate" and page.text("#parting"), "a run started by Ctrl+Enter")

    stops = []
    for _ in range(40):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        stops.append(page.js(FOCUSED))
    for stop in (
        *("generate", "steering", "select", "fork_temperature", "temperature", "mode", "threshold", "tok"),
        *("curl", "python"),
    ):
        assert stop in stops, f"Tab never came to {stop}: {stops}"
    assert stops.count("tok") <= 4, "a text is one tab stop, not one a token"

    page.js("document.querySelector('.baseline .tok').focus()")
    press = page.driver.switch_to.active_element.send_keys
    press(Keys.ARROW_RIGHT)
    assert page.js("return document.activeElement.dataset.index") == "1"
    assert page.one("#inspector").is_displayed()
    assert page.js("return document.activeElement.getAttribute('aria-describedby')") == "inspector"
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.one("#inspector").is_displayed()
    forks = [i for i in forks_of(scripted("baseline"), CALIBRATED_THRESHOLD_NATS) if i > 1]
    for expected in forks[:2]:
        page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
        assert int(page.js("return document.activeElement.dataset.index")) == expected


# ---- awkward streams ---------------------------------------------------------------------------------------------


def test_events_cut_anywhere_and_several_tokens_a_chunk_change_nothing(page: Page) -> None:
    page.generate("several-a-chunk")
    assert page.texts("steered") == [t.text for t in scripted("steered")]
    assert page.indices(".steered .tok.fork") == forks_of(scripted("steered"), CALIBRATED_THRESHOLD_NATS)


def test_a_character_split_over_tokens_is_shown_once_and_control_tokens_apart(page: Page) -> None:
    page.generate("split-character")
    assert page.texts("baseline") == ["Well", "", " 🙂", "", "é", "!", "<|im_end|>"]
    kinds = page.js("return [...document.querySelectorAll('.baseline .tok')].map((n) => n.classList[1])")
    assert kinds == ["text", "part", "text", "part", "text", "text", "special"]
    assert "7 tokens" in page.text(".baseline .stats")


def test_without_logprobs_a_chunk_is_one_piece_with_several_entropies(page: Page) -> None:
    page.generate("no-logprobs")
    tokens = scripted("baseline")
    assert "".join(page.texts("baseline")) == "".join(t.text for t in tokens)
    assert f"{len(tokens)} tokens" in page.text(".baseline .stats")
    page.js("document.querySelector('.baseline .tok').focus()")
    assert page.text("#inspector dd").count(" nats") == 3


def test_markup_from_the_model_stays_text(page: Page) -> None:
    page.generate("markup")
    assert page.texts("baseline")[0] == "<img src=x onerror=alert(1)>"
    page.js("document.querySelector('.baseline .tok').focus()")
    assert "<img" in page.text("#inspector")
    assert page.find(".tokens img, .tokens script, #inspector img, #parting img") == []
    assert page.log() == []


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("error-in-stream", "The server gave up while answering: the engine stopped"),
        ("cut", "The connection was cut before the answer was complete. What arrived is kept."),
    ],
)
def test_a_stream_that_fails_keeps_its_tokens_and_says_why(page: Page, scenario: str, said: str) -> None:
    page.generate(scenario)
    assert page.error == said
    assert page.one("#error").is_displayed()
    assert page.one("#error").get_attribute("role") == "alert"
    assert page.texts("baseline") == [t.text for t in scripted("baseline")][:5]
    assert "cut short" in page.text(".baseline .stats")
    assert page.text("#parting") == ""  # nobody knows whether the arms would have parted
    page.generate("scripted")
    assert page.error == ""


def test_a_refused_request_names_the_reason_and_marks_the_control(page: Page) -> None:
    page.generate("refused")
    assert page.error == f"The server refused: {stub_server.REFUSAL}"
    control = page.one("#fork_temperature")
    assert control.get_attribute("aria-invalid") == "true"
    assert control.get_attribute("aria-describedby") == "error"
    page.set("fork_temperature", 1.1)
    assert control.get_attribute("aria-invalid") is None


def test_a_server_that_is_gone_is_reported(chrome: Chrome) -> None:
    stub = Stub()
    page = Page(chrome, stub.url)
    stub.stop()
    page.generate("scripted")
    assert "cannot be reached" in page.error


def test_stop_ends_both_requests_at_the_server(page: Page, stub: Stub) -> None:
    before = stub.disconnects
    page.start("slow")
    page.wait(lambda: len(page.find(".steered .tok")) > 3, "tokens")
    page.one("#stop").click()
    page.wait(lambda: stub.disconnects == before + 2, "both requests to end at the server")
    page.wait(lambda: page.one("#generate").text == "Generate", "the end of the run")
    page.frames()
    assert page.error == ""
    assert "stopped by you" in page.text(".steered .stats")
    assert page.js("return document.activeElement.id") == "generate"
    count = len(page.find(".steered .tok"))
    time.sleep(0.2)
    assert len(page.find(".steered .tok")) == count
    page.generate("scripted")
    assert page.texts("steered") == [t.text for t in scripted("steered")]


def test_the_key_is_asked_for_sent_and_never_written_down(chrome: Chrome) -> None:
    stub = Stub(api_key="s3cret'key")
    page = Page(chrome, stub.url)
    assert page.error == "The server wants an API key, or does not know this one."
    assert page.one("#api_key").is_displayed()  # unfolded because it is what is missing
    page.one("#api_key").send_keys("s3cret'key", Keys.TAB)
    page.wait(lambda: page.find("#model option"), "the models, once the key is right")
    page.generate("scripted")
    assert page.error == ""
    assert {r["headers"]["Authorization"] for r in stub.requests} == {"Bearer s3cret'key"}
    assert "s3cret" not in page.text("#curl") + page.text("#python")
    assert "STEERDEC_API_KEY" in page.text("#curl")
    assert "STEERDEC_API_KEY" in page.text("#python")
    assert page.js("return localStorage.length + sessionStorage.length + document.cookie.length") == 0
    stub.stop()


def test_generate_asks_for_the_models_again_when_they_could_not_be_had(chrome: Chrome) -> None:
    stub = Stub(api_key="not yet")
    page = Page(chrome, stub.url)
    assert page.error
    stub.api_key = None
    page.generate()
    assert page.error == ""
    assert page.texts("steered") == [t.text for t in scripted("steered")]
    stub.stop()


# ---- snippets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["chat", "completion"])
@pytest.mark.parametrize("program", ["curl", "python"])
def test_the_snippets_send_exactly_what_the_page_sends(
    page: Page, stub: Stub, tmp_path: Path, program: str, mode: str
) -> None:
    page.one(f"input[name=mode][value={mode}]").find_element(By.XPATH, "..").click()
    page.set("prompt", AWKWARD)
    page.generate("scripted")
    sent = next(r["body"] for r in stub.requests if "fork_temperature" in r["body"]["steering"])
    stub.requests.clear()
    script = tmp_path / "snippet"
    script.write_text(page.text(f"#{program}"), encoding="utf-8")
    command = ["sh", str(script)] if program == "curl" else [sys.executable, str(script)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [r["body"] for r in stub.requests] == [sent]
    assert sent["prompt" if mode == "completion" else "messages"]
    assert "33" in ran.stdout or "42" in ran.stdout  # the answer's text came out


def test_the_snippets_follow_the_controls_and_can_be_copied(page: Page) -> None:
    origin = page.js("return location.origin")
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"origin": origin, "permissions": ["clipboardReadWrite"]})
    page.set("fork_temperature", 2.5)
    assert '"fork_temperature": 2.5' in page.text("#curl")
    page.one("[data-copy=curl]").click()
    page.wait(lambda: page.one("[data-copy=curl]").text == "Copied", "the copy")
    assert page.js("return navigator.clipboard.readText()") == page.text("#curl")
    page.one("input[name=steering]").click()
    assert "baseline arm" in page.text("#snippets-note")
    assert "fork_temperature" not in page.text("#curl")


# ---- looks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [WIDE, 800, NARROW, NARROWEST])
def test_nothing_sticks_out_of_the_window(page: Page, width: int) -> None:
    page.resize(width)
    page.driver.get(page.url)
    page.wait(lambda: page.find("#model option"), "the models")
    page.set("prompt", "x" * 300)
    page.generate("scripted")
    page.js("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert page.js("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    outside = page.js(OUTSIDE)
    assert outside == []
    page.js("document.querySelector('.steered .tok.first').focus()")
    box = page.js("return document.getElementById('inspector').getBoundingClientRect().toJSON()")
    assert box["width"] > 0
    assert box["left"] >= 0
    assert box["right"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_aa_contrast_in_both_schemes(page: Page, scheme: str) -> None:
    page.resize(WIDE, scheme)
    page.generate("refused")
    page.generate("scripted")
    page.set("fork_temperature", 1.3)
    page.js("document.querySelectorAll('.baseline .tok').forEach((n, i) => n.style.setProperty('--heat', `${i}%`))")
    page.js("document.querySelector('.steered .tok.first').focus()")
    page.js("document.getElementById('error').hidden = false; document.getElementById('error').textContent = 'x'")
    assert page.js(CONTRAST) == []


def test_no_file_of_the_page_writes_markup_or_holds_inline_code() -> None:
    for file in stub_server.PAGE.iterdir():
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), file.name
        if file.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg|html\.spec\.whatwg\.org)", text), file.name


# ---- every policy, selector and scope ------------------------------------------------------------------------------

EVERY_CHOICE = """
const form = document.getElementById('form').elements;
const choose = (name, value) => {
  form[name].value = value;
  (form[name][0] ?? form[name]).dispatchEvent(new Event('input', {bubbles: true}));
};
const values = (name) => [...form[name]].map((option) => option.value);
const made = [];
for (const policy of values('policy'))
  for (const select of (choose('policy', policy), values('select')))
    for (const scope of values('scope')) {
      form.policy.value = policy; form.policy.dispatchEvent(new Event('input', {bubbles: true}));
      choose('select', select); choose('scope', scope);
      if (!document.getElementById('form').checkValidity()) made.push('invalid: ' + policy);
      made.push(document.getElementById('curl').textContent.match(/-d '([^]*)'$/)[1]);
    }
return made;
"""


def test_every_policy_selector_and_scope_of_the_server_makes_a_request_that_it_takes(page: Page) -> None:
    asked = [json.loads(body)["steering"] for body in page.js(EVERY_CHOICE)]
    selects, scopes = get_args(Select), ("all", "thinking", "answer")
    wanted = {(policy, select, scope) for policy in POLICIES for select in selects for scope in scopes}
    assert {(one["policy"], one["select"], one["scope"]) for one in asked} == wanted
    for one in asked:
        assert stub_server.parse(one).telemetry == "tokens"
    own = {name for one in asked for name in one}
    everything = {name for policy in POLICIES.values() for name in policy.model_fields}
    blank = {"other_temperature", "thinking_start_id", "thinking_end_id", "quantile", "hysteresis"}
    blank |= {"guard_mean_entropy_nats", "guard_window_tokens"}
    assert everything - own == {"probe_temperature", "stream_telemetry"} | blank


def test_the_form_follows_the_schema_of_the_server(page: Page) -> None:
    """A policy that no file of the page names: it is one more entry of the schema."""
    shown = page.js(
        """const {readSchema} = await import('/page/schema.js');
        const {Fields} = await import('/page/fields.js');
        const schema = await (await fetch('/v1/steering/schema')).json();
        const split = schema.oneOf[0];
        const strength = {type: 'number', minimum: 0, maximum: 2, default: 0.25, description: 'x'};
        schema.oneOf.push({...split, title: 'new_one', description: 'Something new.', properties: {...split.properties,
          policy: {const: 'new_one'}, strength,
          shape: {enum: ['round', 'square'], default: 'square', description: 'y'}}});
        const fields = new Fields(document.createElement('div'));
        fields.show(readSchema(schema).at(-1));
        return [fields.steering, fields.root.querySelectorAll('[name=strength][min="0"][max="2"]').length];"""
    )
    assert shown == [
        {"select": "entropy", "fork_temperature": 1.2, "strength": 0.25, "shape": "square", "scope": "all"},
        1,
    ]


def test_a_policy_brings_its_fields_and_its_selector_and_keeps_what_was_typed(page: Page, stub: Stub) -> None:
    page.set("fork_temperature", 1.7)
    page.set("policy", "dynatemp")
    assert page.one("[name=select]:checked").get_attribute("value") == "all"  # as in the original
    assert not page.find("#fork_temperature")
    assert "llama.cpp" in page.text("#policy-about")
    page.set("max_temperature", 2)
    page.generate("scripted")
    assert page.error == ""
    asked = [r["body"]["steering"] for r in stub.requests]
    steered = {"min_temperature": 0.5, "max_temperature": 2, "exponent": 1}
    shared = {"select": "all", "scope": "all", "telemetry": "tokens"}
    assert {"policy": "dynatemp", **shared, **steered} in asked
    assert {"policy": "split", **shared} in asked
    assert "max temperature 2" in page.text(".steered .card-head")
    page.set("policy", "split")
    assert page.one("#fork_temperature").get_attribute("value") == "1.7"


# ---- before, while and after a run -------------------------------------------------------------------------------


def test_a_long_run_is_asked_about_first(page: Page, stub: Stub) -> None:
    assert page.text("#cost") == "Up to 400 tokens: 2 arms of 200."
    page.set("max_tokens", 1001)
    assert page.text("#cost") == "Up to 2,002 tokens: 2 arms of 1,001. You will be asked first."
    page.start("scripted")
    page.wait(lambda: page.one("#long-run").is_displayed(), "the question")
    assert "Up to 2,002 tokens" in page.text("#long-run p")
    assert page.js("return document.activeElement.value") == "cancel"
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.wait(lambda: not page.one("#long-run").is_displayed(), "the dialog to close")
    assert stub.requests == []
    page.one("#generate").click()
    page.one("#long-run [value=go]").click()
    page.wait(lambda: page.one("#generate").text == "Generate" and page.text("#parting"), "the run")
    assert len(stub.requests) == 2
    stub.requests.clear()
    page.set("max_tokens", 1000)
    page.generate("scripted")
    assert len(stub.requests) == 2


def test_leaving_is_warned_about_only_while_a_run_is_going_on(page: Page) -> None:
    leaving = (
        "const event = new Event('beforeunload', {cancelable: true}); dispatchEvent(event);"
        "return event.defaultPrevented"
    )
    assert page.js(leaving) is False
    page.start("slow")
    page.wait(lambda: page.find(".steered .tok"), "tokens")
    assert page.js(leaving) is True
    assert not page.one("[data-keep=load]").is_enabled()
    page.one("#stop").click()
    page.wait(lambda: page.one("#generate").text == "Generate", "the end of the run")
    assert page.js(leaving) is False


def saved(page: Page, name: str, folder: Path) -> Path:
    """The file that the button `name` hands to the person."""
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    page.one(f"[data-keep={name}]").click()
    page.wait(lambda: [f for f in folder.glob("steerdec-*") if f.suffix != ".crdownload"], "the file")
    (file,) = folder.glob("steerdec-*")
    return file


def test_a_session_comes_back_as_it_was_and_holds_no_key(page: Page, tmp_path: Path) -> None:
    page.set("api_key", "s3cret")
    page.set("prompt", AWKWARD)
    page.set("seed", 9)
    page.set("policy", "edt")
    page.one("input[name=select][value=entropy]").find_element(By.XPATH, "..").click()
    page.set("theta", 0.4)
    page.generate("scripted")
    seen = [page.text(one) for one in ("#arms", "#parting", "#rates", "#curl")]
    marks = page.indices(".tokens .fork")
    file = saved(page, "save", tmp_path)
    assert "s3cret" not in file.read_text("utf-8")

    page.driver.get(page.url)
    page.wait(lambda: page.find("#model option"), "the models")
    page.set("api_key", "s3cret")
    page.one("#keep input[type=file]").send_keys(str(file))
    page.wait(lambda: "loaded" in page.text("#kept"), "the session")
    page.frames()
    assert [page.text(one) for one in ("#arms", "#parting", "#rates", "#curl")] == seen
    assert page.indices(".tokens .fork") == marks
    assert page.log() == []


GOOD = {
    "steerdec_session": 1,
    "settings": {
        **{"prompt": "x", "mode": "chat", "model": "scripted", "temperature": 1, "max_tokens": 5, "seed": 1},
        **{"steered": True, "steering": {"policy": "split", "select": "entropy", "fork_temperature": 1.5}},
    },
    "arms": {
        "baseline": {
            "spans": [
                {
                    **{"text": "<img src=x onerror=alert(1)>", "kind": "text", "logprob": -1, "alternatives": []},
                    "tokens": [{"entropy_nats": 1.5, "fork": True, "temperature": 1}],
                }
            ],
            **{"summary": None, "ending": "<b>x</b>", "complete": True},
        }
    },
}


def changed(path: str, value: Any) -> str:
    session = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    place = session
    for name in parents:
        place = place[int(name)] if isinstance(place, list) else place[name]
    place[last] = value
    return json.dumps(session)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "The file is not JSON"),
        ("[]", "steerdec_session is undefined"),
        ('{"steerdec_session": 2}', "steerdec_session is 2; allowed: 1."),
        (changed("settings.temperature", "hot"), 'settings.temperature is "hot"; allowed: a number'),
        (changed("settings.seed", 1.5), "settings.seed is 1.5; allowed: a whole number"),
        (changed("settings.api_key", "k"), 'settings has an unknown entry "api_key"'),
        (
            changed("settings.steering.policy", "constructor"),
            'settings.steering.policy is "constructor"; allowed: split',
        ),
        (
            changed("settings.steering.fork_temperature", 1e9),
            "settings.steering.fork_temperature is 1000000000; allowed",
        ),
        (changed("settings.steering", {"policy": "entropy_target"}), "settings.steering.delta_nats is missing."),
        (changed("settings.steering.k", 3), 'settings.steering has an unknown entry "k"'),
        (changed("arms.other", {}), 'arms has an unknown entry "other"'),
        (changed("arms.baseline.spans.0.tokens", {}), "arms.baseline.spans[0].tokens is {}; allowed: a list"),
        (changed("arms.baseline.spans.0.kind", "html"), 'arms.baseline.spans[0].kind is "html"; allowed: text'),
    ],
)
def test_a_file_that_is_no_session_is_one_plain_line_and_changes_nothing(
    page: Page, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(content, encoding="utf-8")
    before = page.text("#curl")
    page.one("#keep input[type=file]").send_keys(str(file))
    page.wait(lambda: page.error, "the reason")
    assert page.error.startswith(said)
    assert "\n" not in page.error
    assert page.text("#curl") == before
    assert page.log() == []


def test_a_session_with_markup_stays_text(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "session.json"
    file.write_text(json.dumps(GOOD), encoding="utf-8")
    page.one("#keep input[type=file]").send_keys(str(file))
    page.wait(lambda: "loaded" in page.text("#kept"), "the session")
    assert page.texts("baseline") == ["<img src=x onerror=alert(1)>"]
    assert "<b>x</b>" in page.text(".baseline .stats")
    assert page.find("#arms img, #arms b") == []
    assert page.one("#fork_temperature").get_attribute("value") == "1.5"
    assert page.log() == []


def test_a_link_carries_settings_and_prompt_and_never_a_key(page: Page, stub: Stub) -> None:
    page.set("api_key", "s3cret")
    page.set("prompt", AWKWARD)
    page.set("policy", "uniform_top_k")
    page.set("k", 7)
    page.one("[data-keep=link]").click()
    page.wait(lambda: page.text("#keep output"), "the link")
    link = page.text("#keep output")
    assert link.startswith(page.url + "#settings=")
    fragment = link.partition("=")[2]
    inside = base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4)).decode()
    assert json.loads(inside)["prompt"] == AWKWARD
    assert "s3cret" not in inside
    page.driver.get("about:blank")
    page.driver.get(link)
    page.wait(lambda: "from the link" in page.text("#kept"), "the settings")
    assert page.one("#prompt").get_attribute("value") == AWKWARD
    assert page.one("#k").get_attribute("value") == "7"
    assert page.js("return location.hash") == ""
    assert stub.requests == []  # following a link generates nothing

    page.set("prompt", "x" * 9000)
    page.one("[data-keep=link]").click()
    page.wait(lambda: page.error, "the refusal")
    page.set("temperature", "")
    page.one("[data-keep=link]").click()
    page.wait(
        lambda: page.error.startswith("settings.temperature is null; allowed: a number from 0 to 100"), "the other"
    )
    page.set("temperature", 1)
    page.one("[data-keep=link]").click()
    page.wait(lambda: page.error.startswith("A link"), "the refusal again")
    assert re.match(r"A link would have 1\d,\d{3} characters, at most 8,000 are allowed", page.error)


@pytest.mark.parametrize(
    ("fragment", "said"),
    [
        ("%%%", "The link's settings are damaged."),
        ("eyJhIjoxfQ", 'The link: settings has an unknown entry "a"'),
        ("A" * 8001, "The link's settings are too long."),
    ],
)
def test_a_bad_link_is_one_plain_line(page: Page, fragment: str, said: str) -> None:
    page.js("location.hash = arguments[0]", f"#settings={fragment}")
    page.wait(lambda: page.error, "the reason")
    assert page.error.startswith(said)
    assert page.one("#prompt").get_attribute("value")


def test_the_picture_shows_every_token_its_color_and_the_legend(page: Page, tmp_path: Path) -> None:
    page.one("[data-keep=svg]").click()
    page.wait(lambda: page.error == "There is no run to draw yet.", "the reason")
    page.set("prompt", AWKWARD + " <script>alert(1)</script>")
    page.generate("scripted")
    (tmp_path / "svg").mkdir()
    root = ElementTree.parse(saved(page, "svg", tmp_path / "svg")).getroot()
    ns = "{http://www.w3.org/2000/svg}"
    assert {node.tag.removeprefix(ns) for node in root.iter()} == {"svg", "rect", "text"}
    drawn = [node.text or "" for node in root.iter(f"{ns}text") if "Mono" in node.get("font-family", "")]
    written = [t.text for arm in ("baseline", "steered") for t in scripted(arm)]
    assert "".join("".join(drawn).split()) == "".join("".join(written).split())
    texts = [node.text for node in root.iter(f"{ns}text")]
    assert {"entropy H, nats", "fork", "the arms part", "Baseline", "Steered"} <= set(texts)
    fills = {node.get("fill") for node in root.iter(f"{ns}rect")}
    assert len(fills) > 10
    assert all(re.fullmatch("#[0-9a-f]{6}", fill or "") for fill in fills)
    (tmp_path / "png").mkdir()
    png = saved(page, "png", tmp_path / "png").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (2 * int(root.get("width", "0")), 2 * int(root.get("height", "0")))
    assert page.log() == []
