"""Did it come as planned? Plan against actual, calibration, and the forecast from here on."""
