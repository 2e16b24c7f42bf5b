"""What of the installed vLLM is used: each test fails when vLLM moves what steerdec stands on.

tests/contract/table.py has the names; `make contract` reads them in every supported version.
"""

from __future__ import annotations

import ast
import re
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import vllm
from packaging.version import Version
from vllm import SamplingParams

from steerdec.policies import registry
from steerdec.steering import admission
from steerdec.steering.encoding import encode
from steerdec.steering.params import PAPER_THRESHOLD_NATS
from steerdec.vllm_plugin import request
from steerdec.vllm_plugin.settings import CONFIG_KEY, Settings
from steerdec.vllm_plugin.versions import SUPPORTED
from tests.contract.check import violations
from tests.contract.sources import Sources
from tests.contract.table import TABLE, Used

ROOT = Path(__file__).parents[2]


def test_the_installed_version_is_one_we_support() -> None:
    assert SUPPORTED[0] <= Version(Version(vllm.__version__).base_version) < SUPPORTED[1]


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources.installed()


@pytest.mark.parametrize("used", TABLE, ids=str)
def test_the_installed_vllm_keeps_the_table(sources: Sources, used: Used) -> None:
    assert violations(sources, used) == []


def our_files() -> list[Path]:
    files = [path for folder in ("steerdec", "server", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    linked = (ROOT / "steerdec" / "server", ROOT / "steerdec" / "benchmarks")
    return [path for path in files if not any(path.is_relative_to(link) for link in linked)]


def test_every_import_from_vllm_is_in_the_table() -> None:
    listed = {(by, used.module, used.name.partition(".")[0]) for used in TABLE for by in used.by}
    for path in our_files():
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] == "vllm":
                        assert (name, alias.name, "") in listed, f"{name}: import {alias.name}"
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                for alias in node.names:
                    assert (name, node.module, alias.name) in listed, f"{name}: {node.module}.{alias.name}"


@pytest.mark.parametrize("used", TABLE, ids=str)
def test_the_table_lists_nothing_that_is_not_used(used: Used) -> None:
    """Flags and fields of requests are spelled with dashes or as texts, hence words and not names."""
    files = [(ROOT / by).read_text() for by in used.by]
    words = {word.replace("-", "_") for text in files for word in re.findall(r"[\w-]+", text)}
    for attribute in used.attributes:
        assert attribute in {word.strip("_").removeprefix("no_") for word in words}, attribute
    method = used.name.partition(".")[2]
    assert not method or used.order or method in words  # what is only in order is vLLM's own code


def test_a_vllm_that_has_moved_is_found_out() -> None:
    """The reader itself: each change of what is relied on is told, and nothing else is."""
    kept = {"a": "class A(B):\n    x: int = 0\n    def f(self, p, q): first(); second()\n", "b": "from vllm.c import B"}
    kept["c"] = "class B:\n    def __init__(self): self.y = 1\n"
    used = [
        Used((), "vllm.a", "A", attributes=("x", "y")),
        Used((), "vllm.a", "A.f", ("self", "p"), order=("first()", "second()")),
        Used((), "vllm.b", "B"),
    ]

    def told(**changes: str) -> list[str]:
        files = {f"vllm/{name}.py": text for name, text in (kept | changes).items()}
        files["vllm/a.py"] = "from vllm.b import B\n" + files["vllm/a.py"]
        return [line for one in used for line in violations(Sources(files.get), one)]

    assert told() == []
    assert told(c="") == [
        "vllm.a:A: has no y (needed by )",
        "vllm.b:B: vllm.c has no B (needed by )",
    ]
    assert told(a=kept["a"].replace("x: int", "z: int")) == ["vllm.a:A: has no x (needed by )"]
    assert "takes ('self', 'q', 'p'), not ('self', 'p')" in told(a=kept["a"].replace("p, q", "q, p"))[0]
    assert "does not come after" in told(a=kept["a"].replace("first(); second()", "second(); first()"))[0]
    assert "is not there" in told(a=kept["a"].replace("first()", "pass"))[0]


def test_validation_knows_the_runner_and_speculation_of_its_caller() -> None:
    class Config:
        use_v2_model_runner = True
        speculative_config = None
        parallel_config = None
        scheduler_config, model_config = SimpleNamespace(async_scheduling=False), None

    class InputProcessor:
        vllm_config = Config()

        def validate(self, params: SamplingParams) -> None:
            request.validate(params)

    params = SamplingParams(extra_args={"steering": {}}, presence_penalty=0.5)
    InputProcessor().validate(params)  # exact on V2, where penalties come first
    Config.use_v2_model_runner = False
    with pytest.raises(ValueError, match="penalties"):
        InputProcessor().validate(params)


class NamingProcessor:
    """In place of vLLM's InputProcessor, by whose name it is found: only the request's name counts here."""

    def process_inputs(self, request_id: str, params: SamplingParams) -> SamplingParams:
        for _ in range(2):  # vLLM loads the processor twice
            request.validate(params)
        return params


NamingProcessor.__name__ = "InputProcessor"


def prompts_params(**extra: Any) -> dict[str, Any]:
    packed = registry.parse({}), 1.0, PAPER_THRESHOLD_NATS
    encoded = [request.BY_THE_SERVER, *encode(*packed).packed()]
    return {request.ENCODED_ARG: encoded, request.LANES_ARG: list(range(12)), request.PROMPTS_ARG: 3, "mine": 1} | extra


@pytest.mark.parametrize("seed", [None, 7])
def test_each_prompt_of_a_completion_gets_its_own_lanes(seed: int | None) -> None:
    shared = prompts_params()
    each = [
        NamingProcessor().process_inputs(f"cmpl-a-9-{i}", SamplingParams(n=2, seed=seed, extra_args=shared))
        for i in range(3)
    ]
    assert shared == prompts_params(), "vLLM gives all prompts the same dict"
    for i, params in enumerate(each):
        extra = params.extra_args or {}
        assert extra[request.LANES_ARG] == list(range(4 * i, 4 * i + 4))
        assert extra[request.BASE_SEED_ARG] == params.seed
        assert extra["mine"] == 1
        assert request.PROMPTS_ARG not in extra
    assert len({params.seed for params in each}) == (3 if seed is None else 1)


@pytest.mark.parametrize("name", ["cmpl-a", "cmpl-a-3", "cmpl-a-x", ""])
def test_a_request_that_is_not_named_by_its_prompt_gets_no_lanes_of_another(name: str) -> None:
    with pytest.raises(ValueError, match="several prompts"):
        NamingProcessor().process_inputs(name, SamplingParams(n=2, extra_args=prompts_params()))


@pytest.mark.parametrize(
    "wrong",
    [
        *({request.PROMPTS_ARG: 1}, {request.PROMPTS_ARG: 2}, {request.PROMPTS_ARG: "3"}, {request.PROMPTS_ARG: True}),
        *({request.LANES_ARG: None}, {request.LANES_ARG: [0] * 11}, {request.LANES_ARG: ["a"] * 12}),
    ],
)
def test_prompts_in_a_form_that_the_server_does_not_send_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the server's own"):
        NamingProcessor().process_inputs("cmpl-a-0", SamplingParams(n=2, extra_args=prompts_params(**wrong)))


def test_on_v1_nobody_is_left_out_of_a_default_that_the_engine_cannot_do() -> None:
    """vLLM drops a processor found by its entry point under speculative decoding, and hides tokens from it under
    asynchronous scheduling: both in silence."""

    scheduler, model = SimpleNamespace(async_scheduling=False), SimpleNamespace(logits_processors=None)
    config = SimpleNamespace(use_v2_model_runner=False, scheduler_config=scheduler, model_config=model)
    config.speculative_config, config.parallel_config = object(), None
    config.additional_config = {CONFIG_KEY: {"default": {"fork_temperature": 1.2}}}

    class InputProcessor:
        vllm_config = config

        def validate(self, **sampling: Any) -> None:
            request.validate(SamplingParams(**sampling))

    engine = InputProcessor()
    with pytest.raises(ValueError, match="drops logits processors under speculative decoding"):
        engine.validate(temperature=1.0)
    engine.validate(temperature=0.0)  # which the default would not touch
    config.speculative_config = None
    engine.validate(temperature=1.0)
    engine.validate(temperature=1.0, presence_penalty=0.5)  # left unsteered by the worker, which says so

    thinking = {"scope": "thinking", "thinking_start_id": 1, "thinking_end_id": 2}
    config.additional_config = {CONFIG_KEY: {"default": thinking}}
    engine.validate(temperature=1.0)
    scheduler.async_scheduling = True
    with pytest.raises(ValueError, match="--no-async-scheduling"):
        engine.validate(temperature=1.0)
    config.additional_config = {}
    engine.validate(temperature=1.0)
    with pytest.raises(ValueError, match="--no-async-scheduling"):
        engine.validate(temperature=1.0, extra_args={"steering": thinking})
    model.logits_processors = ["steerdec.processor:EntropySteering"]
    engine.validate(temperature=1.0, extra_args={"steering": thinking})


@pytest.mark.parametrize("threshold_nats", [-1, float("nan"), float("inf"), "0.5", True])
def test_the_engines_own_threshold_is_held_to_the_rule_of_requests(threshold_nats: Any) -> None:
    def settings(given: dict[str, Any]) -> Settings:
        return Settings.of(SimpleNamespace(additional_config={CONFIG_KEY: given}))

    with pytest.raises(ValueError, match=r"^additional-config steerdec: threshold_nats: "):
        settings({"threshold_nats": threshold_nats})
    assert settings({"threshold_nats": 0.5}).threshold_nats == 0.5
    assert settings({}).threshold_nats == PAPER_THRESHOLD_NATS


def test_vllm_clamps_tiny_temperatures_where_ours_begin() -> None:
    from steerdec.steering.params import MIN_TEMPERATURE

    assert SamplingParams(temperature=MIN_TEMPERATURE / 2).temperature == MIN_TEMPERATURE


def test_entry_points_are_the_ones_vllm_looks_for() -> None:
    from vllm.plugins import ENDPOINT_PLUGINS_GROUP
    from vllm.v1.sample.logits_processor import LOGITSPROCS_GROUP
    from vllm.v1.worker.gpu.sample.logits_processor.loader import LOGITSPROCS_GROUP as V2_GROUP

    assert LOGITSPROCS_GROUP == V2_GROUP == "vllm.logits_processors"
    assert entry_points(group=LOGITSPROCS_GROUP)["steerdec"].load().__name__ == "EntropySteering"
    assert entry_points(group=ENDPOINT_PLUGINS_GROUP)["steerdec"].load().__name__ == "SteeringRoutes"


def test_the_endpoint_plugin_fits_vllms_protocol() -> None:
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    from steerdec.server.routes import SteeringRoutes

    assert isinstance(SteeringRoutes(), EndpointPlugin)


def test_pooling_models_are_left_alone(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.sample.logits_processor import build_logitsprocs
    from vllm.v1.worker.gpu import buffer_utils
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors
    from vllm.v1.worker.gpu.states import RequestState

    config = EngineArgs(model=str(weights), max_model_len=128, enforce_eager=True).create_engine_config()
    assert list(build_logitsprocs(config, torch.device("cpu"), False, True).all) == []
    monkeypatch.setattr(buffer_utils, "is_uva_available", lambda: False)  # without CUDA there is no memory to map
    states = RequestState(2, 8, 8, 0, 10, torch.device("cpu"))
    assert build_custom_logits_processors(config, states, True) == []
    assert build_custom_logits_processors(config, states, False) != []


def test_steering_is_parsed_once_in_the_front_end_and_never_in_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM loads the processor twice and asks both to validate; parameters may serve again for a second prompt."""
    calls: list[Any] = []
    parse, admit = registry.parse, admission.admit
    monkeypatch.setattr(registry, "parse", lambda value: calls.append("parse") or parse(value))
    monkeypatch.setattr(admission, "admit", lambda *given: calls.append("admit") or admit(*given))
    params = SamplingParams(extra_args={"steering": {"fork_temperature": 1.3}}, seed=3)
    for _ in range(4):
        request.validate(params)
    assert calls == ["parse", "admit"]
    sequence = request.unpacked(params, Settings())
    assert sequence is not None
    assert calls == ["parse", "admit"]
    params.temperature = 0.5  # another request: the numbers above are for another temperature
    request.validate(params)
    assert calls == ["parse", "admit"] * 2
