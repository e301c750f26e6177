"""python -m tests.fuzz.contract: thousands of valid and invalid requests from our own OpenAPI document.

Schemathesis sends them to a running service and checks every response against the document.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.running import running_service

ST = Path(sys.executable).with_name("st")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=5000, help="an operation (default: 5000)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with running_service(EXT_CLASSIFY_MAX_WAIT_SECONDS="60") as url:
        command = [str(ST), "run", f"{url}/openapi.json", "--checks=all", "--continue-on-failure"]
        limits = [f"--max-examples={options.examples}", f"--seed={options.seed}", "--request-timeout=30"]
        status = subprocess.run([*command, *limits], check=False).returncode
    sys.exit(status)


if __name__ == "__main__":
    main()
