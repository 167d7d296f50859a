"""What is assumed? One YAML file: schema, checks, uncertainty, and the names of outcomes."""
