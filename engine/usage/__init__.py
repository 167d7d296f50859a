"""What was served to which key? API keys, the meter and its durable database."""
