"""`make test-again`: whether what failed in `make test` passes alone, and what it was.

A machine whose cores are busy with something else can fail a test that waits; a fault of the code fails alone, too.
"""

import sys

import pytest

MOST = 3  # more than these at once are a fault, not a busy machine


class _Few:
    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = [item.nodeid for item in session.items]
        if len(self.names) > MOST:
            session.items.clear()


def main() -> int:
    few = _Few()
    code = int(pytest.main(["-p", "no:xdist", "--no-cov", "--last-failed", "--last-failed-no-failures=none"], [few]))
    if not 0 < len(few.names) <= MOST:
        print(f"{len(few.names)} tests failed: only one to {MOST} are tried again.")
        return 1
    print(f"Failed among the others, and {'failed' if code else 'passed'} alone:", *few.names, sep="\n  ")
    return code


if __name__ == "__main__":
    sys.exit(main())
