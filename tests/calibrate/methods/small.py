"""What methods are fitted on: few samples of a tiny DiT."""

from cachesmith.sampling.requests import requests

REQUESTS = requests([{"class_labels": 1}, {"class_labels": 2}], 3, 0)
PAIR = requests([{"class_labels": i} for i in range(2)], 2, 0)
