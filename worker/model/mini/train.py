"""`python -m worker.model.mini.train vae | unet --minutes N` trains a stage of presswork-mini.

Train `vae` first, then `unet`. An interrupted stage continues from its last checkpoint.
"""

import argparse
import sys
from pathlib import Path

from worker.model.mini import parallel, train_unet, train_vae
from worker.model.mini.config import Config

_STAGES = {"vae": train_vae.train, "unet": train_unet.train}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m worker.model.mini.train",
        description="Trains a stage of presswork-mini: first vae, then unet. Run again, it resumes.",
    )
    parser.add_argument("stage", choices=tuple(_STAGES))
    parser.add_argument("--minutes", type=float, required=True, metavar="N", help="wall time of the stage in all")
    parser.add_argument("--folder", type=Path, default=Config().folder, metavar="DIR", help="drawings and checkpoints")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of one thread each (default: 1)")
    given = parser.parse_args(arguments)
    parallel.run(_STAGES[given.stage], Config(folder=given.folder), given.minutes, given.processes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
