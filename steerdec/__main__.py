"""`python -m steerdec` is the command `steerdec`."""

from steerdec.cli import main

main()
