"""The synthesis pipeline: generate, score and keep candidates until the target is met."""
