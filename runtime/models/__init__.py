"""What is known of each diffusers model: its blocks, its units, its identity, its sampler. Nothing that runs."""
