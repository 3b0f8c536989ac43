"""`make images`, `make images-test`, `make chart-test`: images are built; compose.yaml and the chart run from them.

    python -m tests.images build [IMAGE ...]    presswork and presswork-worker, or those named
    python -m tests.images test                 all of compose.yaml from them, and one job through its published ports
    python -m tests.images chart                the chart's pods with its own servers, and one job through them
    python -m tests.images two-hosts            the README's two hosts by compose, and one job drawn by the second

From the environment: ENGINE (docker, buildah or podman; else the first that answers), BASE (the base image), BUILD_ARGS
(more options of the engine's build), RUN_ARGS (of its run, for the chart), TORCH_INDEX_URL, and for the test WORKERS.
"""

import argparse

from tests.images import building


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.images", description="Builds the images, and tries them.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="build the images")
    build.add_argument("images", nargs="*", help=f"of {', '.join(building.IMAGES)}; else the first two")
    verbs.add_parser("test", help="run compose.yaml from the images and render a job")
    verbs.add_parser("chart", help="run the chart's pods from the images and render jobs")
    verbs.add_parser("two-hosts", help="run the recipe for two hosts from the images and render a job on the second")
    given = parser.parse_args()
    if given.verb == "build":
        building.build(given.images or ["presswork", "presswork-worker"])
    elif given.verb == "chart":
        from tests.images import chart

        chart.test()
    elif given.verb == "two-hosts":
        from tests.images import two_hosts

        two_hosts.test()
    else:
        from tests.images import running  # needs more than the standard library

        running.test()


if __name__ == "__main__":
    main()
