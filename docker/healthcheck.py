"""The image's HEALTHCHECK: exits 0 if the server in this container is ready, else 1. Knows nothing of fluxserve.

http.client asks without proxies: the container may have some for fetching weights.
"""

from __future__ import annotations

import http.client
import os
import sys

if __name__ == "__main__":
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["FLUXSERVE_PORT"]), timeout=4)
    connection.request("GET", "/readyz")
    sys.exit(connection.getresponse().status != http.client.OK)
