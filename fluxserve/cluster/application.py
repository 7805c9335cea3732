"""`fluxserve.cluster:build`: from a serve config's args to an application of Ray Serve."""

from __future__ import annotations

from typing import Any

from fluxserve.cluster.settings import read_cluster
from fluxserve.errors import ConfigError


def build(args: dict[str, Any]) -> Any:
    """A deployment for each model, and the ingress in front of them. args: see docs/cluster.md.

    Raises:
        ConfigError: Ray is not installed, or the args are wrong.
    """
    settings = read_cluster(args)
    try:
        from fluxserve.cluster.deployments import application
    except ModuleNotFoundError as error:
        raise ConfigError("Ray Serve is not installed: pip install 'fluxserve[ray]'") from error
    return application(settings)
