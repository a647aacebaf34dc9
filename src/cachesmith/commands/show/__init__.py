"""What `cachesmith inspect` prints: policies and bundles as tables. Reads files, loads no model."""
