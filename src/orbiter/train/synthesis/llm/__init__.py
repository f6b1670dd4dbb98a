"""Synthesis with a language model: new tasks, harder tasks, answers and judgements."""
