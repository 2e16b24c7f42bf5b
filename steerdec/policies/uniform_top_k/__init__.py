"""uniform_top_k: at forks, one of the k most likely tokens, all with the same probability."""
