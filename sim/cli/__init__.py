"""How is the program used from a terminal? One file per group of commands."""

from sim.cli.app import main

__all__ = ["main"]
