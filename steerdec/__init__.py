"""Entropy steering for vLLM: find forking tokens while decoding, change their temperature, measure what it does."""

__version__ = "0.1.0"
