"""RFE's scales and RCS's thresholds of single modules (arXiv 2602.19506), recorded and tuned. Nothing of the stack."""
