"""What may happen, what decides it, what is best? Many runs of a company."""
