"""What to sample: requests, the files that list them, their contents, and their split. Nothing is sampled here."""

from cachesmith.sampling.requests.batches import PER_SAMPLE, arguments_of, batches, differing_arguments
from cachesmith.sampling.requests.check import as_declared, check_requests
from cachesmith.sampling.requests.files import File
from cachesmith.sampling.requests.prompts_file import read_prompts
from cachesmith.sampling.requests.request import (
    Prompt,
    Request,
    completed,
    derived_seed,
    requests,
    requests_digest,
)
from cachesmith.sampling.requests.reserved import RESERVED
from cachesmith.sampling.requests.split import Split, heldout_part, shares_prompts, split

__all__ = [
    "PER_SAMPLE",
    "RESERVED",
    "File",
    "Prompt",
    "Request",
    "Split",
    "arguments_of",
    "as_declared",
    "batches",
    "check_requests",
    "completed",
    "derived_seed",
    "differing_arguments",
    "heldout_part",
    "read_prompts",
    "requests",
    "requests_digest",
    "shares_prompts",
    "split",
]
