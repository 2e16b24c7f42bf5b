"""Entropy steering for vLLM: find forking tokens while decoding, change their temperature, measure what it does."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from steerdec.pages.tokens import ColoredTokens
    from steerdec.policies.dynatemp.fields import DynaTemp
    from steerdec.policies.edt.fields import Edt
    from steerdec.policies.entropy_target.fields import EntropyTarget
    from steerdec.policies.p_less.fields import PLess
    from steerdec.policies.registry import parse
    from steerdec.policies.split.fields import Split
    from steerdec.policies.uniform_top_k.fields import UniformTopK
    from steerdec.records.folder import load_run
    from steerdec.steering.params import Steering, SteeringError

__all__ = [
    "ColoredTokens",
    "DynaTemp",
    "Edt",
    "EntropyTarget",
    "PLess",
    "Split",
    "Steering",
    "SteeringError",
    "UniformTopK",
    "__version__",
    "load_run",
    "parse",
]
__version__ = "0.1.0"

_MODULES: Final = {
    "ColoredTokens": "steerdec.pages.tokens",
    "DynaTemp": "steerdec.policies.dynatemp.fields",
    "Edt": "steerdec.policies.edt.fields",
    "EntropyTarget": "steerdec.policies.entropy_target.fields",
    "PLess": "steerdec.policies.p_less.fields",
    "Split": "steerdec.policies.split.fields",
    "Steering": "steerdec.steering.params",
    "SteeringError": "steerdec.steering.params",
    "UniformTopK": "steerdec.policies.uniform_top_k.fields",
    "load_run": "steerdec.records.folder",
    "parse": "steerdec.policies.registry",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import steerdec` stays light."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
