"""Bytes of a policy file: container, strict JSON, migrations, atomic writes."""
