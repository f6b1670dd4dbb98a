"""The same training job on verl's workers on a Ray cluster."""
