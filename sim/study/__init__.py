"""Studies: many runs of a company, for distributions, causes and best choices."""
