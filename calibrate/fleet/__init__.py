"""Samples spread over processes, and what is summed over them. No mathematics of the estimator."""
