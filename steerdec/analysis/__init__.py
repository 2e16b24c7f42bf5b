"""Analyze texts after they were sampled: entropy patterns, two models compared, lenses, and masks for training.

Models run on torch and transformers; nothing here needs vLLM.
"""
