"""Pure tensor functions, per sample, without a word to the host. They know neither units nor policies."""
