"""A language model whose every number is known beforehand: a Markov chain in a llama's weights.

`kinds` says what a phantom's responses are made of, `chain` turns that into a table of probabilities, `write` puts the
table into a model folder, `truth` computes what every arm has to come out at, and `check` measures a phantom with the
commands that a user has and compares.
"""
