"""The HTTP front: OpenAI's image API over the engine. Knows nothing of torch or of any model."""
