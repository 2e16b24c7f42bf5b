"""The fields that steering depends on and each endpoint reads; vLLM ignores the others, and so must we."""

from __future__ import annotations

from typing import Any, Final

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
PATHS: Final = frozenset({CHAT, COMPLETIONS, RESPONSES})

_IGNORED: Final = {
    CHAT: frozenset({"prompt", "prompt_embeds", "background"}),
    COMPLETIONS: frozenset({"tools", "background", "include_reasoning"}),
    RESPONSES: frozenset(
        {"n", "use_beam_search", "echo", "return_token_ids", "prompt_embeds", "thinking_token_budget"}
    ),
}


def read_by(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the body without the fields that vLLM's handler of `path` ignores."""
    ignored = _IGNORED[path]
    return {name: value for name, value in body.items() if name not in ignored}
