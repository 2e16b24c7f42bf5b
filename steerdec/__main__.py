"""`python -m steerdec` is the command `steerdec`."""

from steerdec.cli.main import main

main()
