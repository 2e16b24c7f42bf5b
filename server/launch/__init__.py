"""Start vLLM's own server with steering, and stay beside it until it ends.

The server is vLLM's own command with its public flags and plugin groups, so that its parallelism and everything else
keep working. `start.serve` does it: `flags` reads what the user wrote, `command` decides what vLLM gets, `port` makes
sure that no other launcher is about to listen there, `supervisor` runs it.
"""
