"""`python -m deepres`."""

from deepres.cli import main

main()
