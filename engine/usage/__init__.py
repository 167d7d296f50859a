"""Who was served what? Keys, the meter and its durable database."""
