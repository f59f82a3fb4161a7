"""`python -m smartmem`."""

from smartmem.cli import main

main()
