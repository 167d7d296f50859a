"""What is independent of companies: paths, YAML with line numbers, random streams, JSON, CSV and PDF."""
