"""`python -m worker.pipelines.ai100_stand_in FOLDER`: installs the stand-in there, in the SDK's layout."""

import sys
from pathlib import Path

from worker.pipelines.ai100_stand_in.install import install

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m worker.pipelines.ai100_stand_in FOLDER")
    install(Path(sys.argv[1]))
