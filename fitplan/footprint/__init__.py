"""The footprint: the memory of a training step as a formula in batch size, sequence length and LoRA rank."""
