"""Policies on the Hugging Face Hub: the card and the upload. What runs or fits a model does not belong here."""

from cachesmith.hub.facts import Facts, read_facts
from cachesmith.hub.push import Files, files_of, push

__all__ = ["Facts", "Files", "files_of", "push", "read_facts"]
