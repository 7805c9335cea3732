"""The FLUX.1 model in plain torch, under the parameter names of the reference implementation. Knows nothing of files,
devices, prompts or HTTP."""
