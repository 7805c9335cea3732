"""From a prompt to a picture in small verbs: begin, step, preview, decode. Knows no HTTP, queues or processes."""
