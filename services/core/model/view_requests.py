"""What is asked for when a view is saved or changed."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from services.core.model.body import Body

Page = Literal["jobs", "images", "log"]
PAGES: tuple[Page, ...] = get_args(Page)
ALLOWED = {
    "page": f"one of {', '.join(PAGES)}",
    "name": "1 to 64 printable characters, the name of no other view of the page",
    "query": "the page's address behind the question mark: up to 2,000 printable ASCII characters without a space",
}
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\u0000-\u001f\u007f-\u009f]*$")]
Query = Annotated[str, Field(max_length=2000, pattern=r"^[\u0021-\u007e]*$")]


class ViewRequest(Body):
    """A new view: a page with its filter, under a name."""

    ALLOWED: ClassVar = ALLOWED
    page: Page
    name: Name
    query: Query


class ViewChanges(Body):
    """A new name, a new filter, or both. What is left out stays."""

    ALLOWED: ClassVar = ALLOWED
    name: Name = None  # type: ignore[assignment]
    query: Query = None  # type: ignore[assignment]
