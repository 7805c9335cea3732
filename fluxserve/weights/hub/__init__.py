"""Fetching models from the Hugging Face Hub, resumed and checked."""
