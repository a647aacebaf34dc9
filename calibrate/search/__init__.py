"""The space of policies and the Optuna study over it."""
