"""Stage 4: who comes, what they use and pay, who leaves."""
