"""The exit codes of a worker's processes, for the supervisor that restarts them."""

SETTINGS = 2  # the parent: a setting or a server is unsuitable; stderr has one sentence
SICK = 71  # the child: the device failed its canary for too long; the parent starts another child
MODEL_UNUSABLE = (
    72  # both: the model is unusable, or the pipeline cannot be loaded or compiled; stderr has one sentence
)
STORE_HANGS = 75  # the child: an upload did not end in time; the parent starts another child
ORPHAN = 73  # the child: its parent has ended
NO_CHILD = 74  # the parent: no child comes up; restart the worker
# 70 is heartbeat.EXIT_HUNG, the child: a batch has made no step for too long.
