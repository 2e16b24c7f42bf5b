"""A language model with exactly known numbers: a Markov chain in a llama's weights.

`kinds` defines the responses of each phantom, `chain` turns that into a table of probabilities, `write` puts the table
into a model folder, `truth` computes the exact results of every arm, and `check` measures a phantom with the commands
that a user has and compares.
"""
