"""`python -m deepres`."""

from deepres.cli.main import main

main()
