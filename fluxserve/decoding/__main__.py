"""`python -m fluxserve.decoding`: decodes what clients send. Started by the front, not by people."""

from __future__ import annotations

from fluxserve.decoding.process import serve

if __name__ == "__main__":
    serve()
