"""What do the books say? Double entry, the three statements, SaaS metrics."""
