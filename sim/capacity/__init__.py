"""What does a replica or a fleet sustain? The bridge from requests to months."""
