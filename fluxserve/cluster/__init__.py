"""Several hosts: each model a deployment of Ray Serve, engine, worker and application unchanged inside it.

`fluxserve.cluster:build` is what `serve run` takes; docs/cluster.md. Ray itself is imported by `deployments.py` alone.
"""

from fluxserve.cluster.application import build

__all__ = ["build"]
