"""Stage 3: roll-outs, and a fleet that follows demand hour by hour."""
