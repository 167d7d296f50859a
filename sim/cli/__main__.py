"""`python -m sim.cli` is `flywheel`."""

from sim.cli import main

main()
