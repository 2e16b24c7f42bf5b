"""split: two temperatures, one at forks, one everywhere else (arXiv 2506.01939, equation 5)."""
