"""T5 and CLIP, which read prompts for FLUX.1."""
