"""Why something was not fetched. No sentence holds more of an address than its host, as the rest may be a secret."""

from services.core.model.errors import PressworkError


class FetchFailed(PressworkError):
    """It could not be fetched. `again`: the other side's trouble, which may pass."""

    def __init__(self, code: str, message: str, *, again: bool = False) -> None:
        self.code, self.again = code, again
        super().__init__(message)
