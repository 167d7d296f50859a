"""How is it asked for in a terminal? One file per group of commands."""

from sim.cli.main import main

__all__ = ["main"]
