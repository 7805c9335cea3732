"""Text encoders that several families read prompts with."""
