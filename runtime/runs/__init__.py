"""A policy at work: sessions, their runs, what a run remembers, branches of guidance. Pipelines are not for here."""
