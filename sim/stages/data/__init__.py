"""Stage 1: where training text comes from, and what it costs."""
