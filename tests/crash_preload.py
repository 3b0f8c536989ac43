"""What the process imports from which programs are forked. The first application that is built takes a second, the
others do not."""

from services.core.settings import Settings
from services.web import application
from tests import crash_programs  # noqa: F401  to have it imported

_NOWHERE = "127.0.0.1:1"
_SETTINGS = {
    "DATABASE_URL": f"postgresql://nobody:none@{_NOWHERE}/none",
    "REDIS_URL": f"redis://{_NOWHERE}",
    "PRESSWORK_S3_URL": f"http://{_NOWHERE}",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "PRESSWORK_SECRET": "x" * 40,
}

application(Settings.read(_SETTINGS))
