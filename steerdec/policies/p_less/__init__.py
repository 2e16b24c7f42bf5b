"""p_less: at forks, the tokens at least as likely as two draws are to agree (arXiv 2509.23234)."""
