"""Weights by least squares in closed loop: cached runs replayed segment by segment. No search and no files."""
