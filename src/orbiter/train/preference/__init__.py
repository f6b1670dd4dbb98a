"""Learning from preferences: pairs of a better and a worse answer, or answers with a verdict."""
