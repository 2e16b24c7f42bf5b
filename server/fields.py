"""The fields that steering depends on and each endpoint reads; vLLM ignores the others, and so must we."""

from __future__ import annotations

from typing import Any, Final

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
RESPONSES: Final = "/v1/responses"
MESSAGES: Final = "/v1/messages"
PATHS: Final = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES})
RETURN_TOKEN_IDS: Final = frozenset({CHAT, COMPLETIONS})  # if asked; the others give a number of tokens alone

_IGNORED: Final = {
    CHAT: frozenset({"prompt", "prompt_embeds", "background"}),
    COMPLETIONS: frozenset({"tools", "background", "include_reasoning"}),
    RESPONSES: frozenset(
        {"n", "use_beam_search", "echo", "return_token_ids", "prompt_embeds", "thinking_token_budget"}
    ),
    MESSAGES: frozenset(
        {
            *("n", "seed", "use_beam_search", "presence_penalty", "frequency_penalty", "repetition_penalty"),
            *("prompt", "prompt_embeds", "echo", "return_token_ids", "background", "include_reasoning"),
            "thinking_token_budget",
        }
    ),
}


def read_by(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the body without the fields that vLLM's handler of `path` ignores; a thinking budget has vLLM's name."""
    ignored = _IGNORED[path]
    read = {name: value for name, value in body.items() if name not in ignored}
    thinking = body.get("thinking") if path == MESSAGES else None
    if isinstance(thinking, dict) and thinking.get("type") == "enabled":
        read["thinking_token_budget"] = thinking.get("budget_tokens")
    return read
