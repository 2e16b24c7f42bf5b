"""Where the forks are, after the fact: entropy patterns, two models compared, lenses, and masks for training.

On torch and transformers alone: nothing here needs vLLM.
"""
