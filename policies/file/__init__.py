"""Bytes of a policy file: container, strict JSON, migrations, what is no policy file."""
