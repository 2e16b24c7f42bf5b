"""`steerdec check`: whether steering is exact, measured, and free on this machine, with this model and these flags.

Each part runs in a process of its own (`part.py`), so that one that dies leaves the others alone. `run.py` starts them,
`report.py` shows and writes what came out. One file for each thing that is checked.
"""
