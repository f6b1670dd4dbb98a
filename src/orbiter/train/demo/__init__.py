"""The main job: a small pretrained model learns to call tools, on real requests, on one machine."""
