"""SQL statements with a name that shows in logs, pg_stat_activity and pg_stat_statements: `/* claims.take */`."""

import re
from collections.abc import Callable

from sqlalchemy import TextClause, text

_FIRST_WORD = re.compile(r"\s*(\S+)")


def statement(name: str) -> Callable[[str], TextClause]:
    """Makes a statement with a name such as `claims.take` (file and variable).

    The name follows the first word, because some tools cut off a comment that precedes a statement.
    """

    def named(sql: str) -> TextClause:
        first = _FIRST_WORD.match(sql)
        assert first is not None, f"{name} is empty"
        return text(f"{first[1]} /* {name} */{sql[first.end() :]}")

    return named
