"""`python -m bmpt`, as torchrun starts it."""

from bmpt.cli.app import main

main()
