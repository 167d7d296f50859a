"""What has nothing to do with companies: paths, YAML with line numbers, random streams, JSON, CSV and PDF."""
