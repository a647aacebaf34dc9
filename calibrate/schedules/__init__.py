"""Which steps a profile computes: what uncached and nudged runs suggest, and what fits choose. No files."""
