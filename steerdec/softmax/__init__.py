"""Sums of a row's softmax on every backend: the largest logit, the entropy, the entropy at another temperature."""
