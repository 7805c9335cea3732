"""OpenAI's image API: its fields, bodies, names and sizes, up to a request that is complete."""
