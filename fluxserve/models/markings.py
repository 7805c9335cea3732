"""What files of every family have in common: prefixes of names, and the field that names a variant."""

from __future__ import annotations

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.", "base_model.model.")
"""What tools put before a transformer's names."""

GGUF_ANY = ("pig", "cow")
"""Architectures that some converters give to GGUF files of any network; the names of the tensors tell."""

VARIANT_FIELD = "_fluxserve_variant"
"""Of a model_index.json or a file's sidecar: a row of the family's variants."""
