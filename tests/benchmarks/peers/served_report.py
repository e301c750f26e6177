"""What a peer serves: a line of its log for each model that it has loaded, for benchmarks to check."""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

MARK = "SERVED "
_STANDARD_ERROR = 2


def report_served(framework: str, engine: str, engine_version: str, model_path: str) -> None:
    """Call it where the model is loaded, with the names that the loaded packages have themselves."""
    file = Path(model_path)
    served = {
        "engine": engine,
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "version": f"{version(framework)} + {engine_version}",
    }
    # One write, for several processes share the log, and past any logging that a framework redirects.
    os.write(_STANDARD_ERROR, f"{MARK}{json.dumps(served)}\n".encode())
