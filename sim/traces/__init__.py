"""Which requests came? Traces of real traffic, read, and generators fitted to them."""
