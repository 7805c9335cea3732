"""Where things live: device, dtype and memory. Knows nothing of prompts, pictures or HTTP."""
