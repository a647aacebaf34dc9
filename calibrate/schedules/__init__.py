"""Which steps a profile computes: what uncached paths suggest, and what fits of a few samples choose. No files."""
