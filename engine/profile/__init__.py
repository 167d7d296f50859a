"""What is a profile? What was measured of a model on a machine: step times, cost, hardware, shape. No torch here."""
