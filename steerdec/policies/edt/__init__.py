"""edt: a temperature that falls where the model is sure (arXiv 2403.14541)."""
