"""Evolution strategies: prompts, numbers, populations of trainings, and baselines."""
