"""Samples spread over processes and machines, and what is summed over them. No mathematics of the estimator."""
