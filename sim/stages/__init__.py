"""How does the company work? Its stages as SimPy processes, and what they share: world, payments, text pool."""
