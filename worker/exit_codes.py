"""With which codes a worker's processes end: what whoever starts them anew can tell by."""

SETTINGS = 2  # the parent: a setting is bad, or a server is not as it must be; said in one sentence
SICK = 71  # the child: the device failed its canary for too long; the parent starts another child
MODEL_UNUSABLE = (
    72  # both: the model does not fit, the pipeline does not load or cannot be compiled; said in one sentence
)
ORPHAN = 73  # the child: its parent is gone
CHILDLESS = 74  # the parent: no child comes up; to be started anew
# 70, lease.EXIT_HUNG, the child: a batch has not moved for too long.
