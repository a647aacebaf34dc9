"""From a profile, a sampler and a model to a plan, before the loop. No tensors of a run."""
