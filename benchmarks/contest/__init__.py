"""What `benchmarks/peers.py` is made of: contestants from other tools, a common yardstick, tables and a figure."""
