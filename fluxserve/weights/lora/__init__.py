"""LoRA files, and putting them to work."""
