"""How near does the simulator come to measured runs? Comparison and calibration."""
