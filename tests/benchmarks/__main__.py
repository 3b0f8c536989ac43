"""`python -m tests.benchmarks all | busy | submit | ...`: prints each figure and writes it as JSON."""

import argparse
import importlib
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
NAMES = (
    "busy",
    "submit",
    "turns",
    "bulk",
    "tenant_delete",
    "trail",
    "claim",
    "billion",
    "reads",
    "ledger",
    "mixed",
    "progress",
    "catalogue",
    "dataset",
    "shards",
    "watchers",
    "scores",
    "engine",
    "cold",
    "mini",
    "fleet",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("name", choices=("all", *NAMES), nargs="?", default="all")
    asked = parser.parse_args().name
    for name in NAMES if asked == "all" else (asked,):
        importlib.import_module(f"tests.benchmarks.{name}").run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
