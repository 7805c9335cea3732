"""The tests. Processes they start find this package too: the engine keeps the working folder off a worker's path."""

import os
from pathlib import Path

ROOT = str(Path(__file__).parent.parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
