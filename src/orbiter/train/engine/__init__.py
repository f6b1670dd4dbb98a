"""The local training engine: it runs, samples from and updates a language model in one process.

Import names from the file that defines them, such as `orbiter.train.engine.models.load`, so that
only that part is loaded.
"""
