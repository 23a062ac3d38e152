"""Memory, FLOPs and communication of an experiment, computed before any training."""
