"""Stage 2: training runs, and the gate before a release."""
