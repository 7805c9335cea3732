"""What other programs knock at, beside OpenAI's API: each door ends in the same resolved request."""
