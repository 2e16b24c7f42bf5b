"""The OpenAI-compatible server: vLLM's own, with the `steering` field and its telemetry."""
