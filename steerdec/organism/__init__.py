"""A small reasoner whose decisions are known by construction: its task, its training, and what it shows about forks."""
