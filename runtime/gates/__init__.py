"""Gates that decide while sampling, one file each. They see features, never modules."""
