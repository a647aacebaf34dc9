"""What is recorded of uncached runs."""
