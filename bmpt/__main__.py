"""`python -m bmpt`, as torchrun starts it."""

from bmpt.cli import main

main()
