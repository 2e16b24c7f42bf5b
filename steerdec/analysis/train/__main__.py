"""Run `python -m steerdec.analysis.train`."""

from steerdec.cli.train import main

main()
