"""The templates of a catalogue: Liquid, with the fields of an item as its only names, and bounded in every direction.

A template is text of at most SOURCE_LIMIT characters. It may loop, but neither include nor read the clock, so the same
item always gives the same text. Each value that it makes is limited, and so are the steps of one rendering: the
library's own limits count iterations and output, and know nothing of what a filter makes. A field that an item does not
have is an error, unless `default` follows it.

In a comparison with a number, a text that shows a number counts as that number, as CSV has no other kind.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from liquid import Environment, RenderContext
from liquid.builtin.expressions import BooleanExpression, Path, tokenize
from liquid.builtin.expressions.filtered import Filter
from liquid.builtin.expressions.logical import (
    EqExpression,
    GeExpression,
    GtExpression,
    LeExpression,
    LtExpression,
    NeExpression,
)
from liquid.builtin.expressions.primitive import (
    Blank,
    Empty,
    FalseLiteral,
    FloatLiteral,
    IntegerLiteral,
    Nil,
    TrueLiteral,
)
from liquid.exceptions import LiquidError, LiquidTypeError, UndefinedError
from liquid.expression import Expression
from liquid.stream import TokenStream
from liquid.template import BoundTemplate
from liquid.token import TOKEN_EXPRESSION, Token
from liquid.undefined import StrictDefaultUndefined, is_undefined
from liquid.utils import ReadOnlyChainMap

from services.core.catalogues import filters
from services.core.items import cells
from services.core.model import strict_json, suggestions
from services.core.model.errors import PressworkError

SOURCE_LIMIT = 4_000  # characters
MARKUP_LIMIT = 100  # of each of {{, {%, [ and (
STEPS_LIMIT = 1_000  # fields read, filters applied and iterations, in one rendering
_TAGS = (
    "if",
    "unless",
    "case",
    "for",
    "break",
    "continue",
    "assign",
    "capture",
    "echo",
    "liquid",
    "comment",
    "#",
    "doc",
)
_PARTS = ("content", "output", "illegal")  # the library's names of what is no tag
_ORDERED = (GeExpression, GtExpression, LeExpression, LtExpression)
_COMPARED = (*_ORDERED, EqExpression, NeExpression)


class BadTemplate(PressworkError):
    """The template is not valid."""


class Inapplicable(PressworkError):
    """The template cannot be applied to this item."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class Template:
    """A template, compiled. `fields`: the names of the item's fields that it reads."""

    def __init__(self, source: str) -> None:
        """Raises BadTemplate."""
        self._template: BoundTemplate = _reasons(lambda: _ENVIRONMENT.from_string(_bounded(source)))
        self.fields = _names(_reasons(lambda: self._template.analyze(include_partials=False).globals))
        _reasons(lambda: _prepare(self._template.nodes))

    def render(self, fields: Mapping[str, Any]) -> str:
        """The text, without spaces at its ends. Raises Inapplicable."""
        text: str = _applied(lambda: self._template.render(fields))
        return text.strip()


class Condition:
    """A condition such as `stock > 0`, compiled. `fields`: the names of the item's fields that it reads."""

    def __init__(self, source: str) -> None:
        """Raises BadTemplate."""
        token = Token(TOKEN_EXPRESSION, _bounded(source), 0, source)
        self._expression: BooleanExpression = _reasons(
            lambda: BooleanExpression.parse(_ENVIRONMENT, TokenStream(tokenize(token.value, token)))
        )
        parts = _reasons(lambda: list(_walk(self._expression)))
        self.fields = _names(path.head() for path in parts if isinstance(path, Path))
        _prepare(self._expression)
        self._template = _ENVIRONMENT.from_string("")

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Raises Inapplicable."""
        found: bool = _applied(lambda: self._expression.evaluate(_Context(self._template, globals=fields)))
        return found


class _Context(RenderContext):
    """Knows the item's fields, and neither the time nor any other name."""

    __slots__ = ("steps",)

    def __init__(self, template: BoundTemplate, **how: Any) -> None:
        super().__init__(template, **how)
        self.scope = ReadOnlyChainMap(self.locals, self.globals, self.counters)
        self.steps = 0

    def step(self, count: int = 1) -> None:
        self.steps += count
        if self.steps > STEPS_LIMIT:
            raise filters.LimitReached(f"it takes more than {STEPS_LIMIT:,} steps")

    def get(self, path: list[object], **how: Any) -> object:
        self.step()
        return super().get(path, **how)

    def filter(self, name: str, token: Token | None) -> Callable[..., object]:
        self.step()
        return super().filter(name, token)

    def raise_for_loop_limit(self, length: int = 1) -> None:
        self.step(length)
        super().raise_for_loop_limit(length)


class _BoundTemplate(BoundTemplate):
    context_class = _Context


class _Environment(Environment):
    template_class = _BoundTemplate
    loop_iteration_limit = STEPS_LIMIT
    output_stream_limit = filters.TEXT_LIMIT
    local_namespace_limit = 16 * filters.TEXT_LIMIT
    logical_not_operator = True
    logical_parentheses = True

    def setup_tags_and_filters(self, *, extra: bool = False) -> None:
        super().setup_tags_and_filters(extra=extra)
        self.tags = {name: tag for name, tag in self.tags.items() if name in _TAGS or name in _PARTS}
        self.filters = {name: filters.bounded(name, self.filters[name]) for name in filters.NAMES}


_ENVIRONMENT = _Environment(undefined=StrictDefaultUndefined)


class _Operand(Expression):
    """One side of a comparison. An unknown field is an error there too, and a text becomes what it is compared with."""

    __slots__ = ("inner", "is_ordered", "kind")

    def __init__(self, inner: Expression, kind: type | None, *, is_ordered: bool) -> None:
        super().__init__(inner.token)
        self.inner, self.kind, self.is_ordered = inner, kind, is_ordered

    def evaluate(self, context: RenderContext) -> object:
        value = self.inner.evaluate(context)
        if is_undefined(value):
            str(value)  # raises UndefinedError
        if self.kind is None or not isinstance(value, str):
            return value
        if self.kind is bool:
            return {"true": True, "false": False}.get(value.strip().lower(), value)
        number = cells.as_number(value)
        if number is None and self.is_ordered:
            shown = strict_json.describe(value)
            raise LiquidTypeError(f"{self.inner} is {shown}, which shows no number", token=None)
        return value if number is None else number

    def children(self) -> list[Expression]:
        return [self.inner]


def _prepare(tree: object) -> None:
    """Puts operands into every comparison of a parsed template. Raises BadTemplate if it names an unknown filter."""
    for part in list(_walk(tree)):
        if isinstance(part, _COMPARED):
            left, right = part.left, part.right
            part.left, part.right = _operand(left, right, part), _operand(right, left, part)
        elif isinstance(part, Filter) and part.name not in filters.NAMES:
            hint = f"; did you mean {near}?" if (near := suggestions.meant(part.name, filters.NAMES)) else ""
            raise BadTemplate(f"There is no filter {strict_json.describe(part.name)}{hint or '.'}")


def _operand(own: Expression, other: Expression, node: Expression) -> Expression:
    if not isinstance(own, Path) or isinstance(other, Nil | Blank | Empty):
        return own
    kind: type | None = None
    if isinstance(other, IntegerLiteral | FloatLiteral):
        kind = float
    elif isinstance(other, TrueLiteral | FalseLiteral):
        kind = bool
    return _Operand(own, kind, is_ordered=isinstance(node, _ORDERED))


def _walk(part: object) -> Iterator[Any]:
    """Every node, expression and filter of a tree, whatever attribute of its parent holds it."""
    if isinstance(part, list | tuple):
        for one in part:
            yield from _walk(one)
        return
    if not type(part).__module__.startswith("liquid.") or isinstance(part, Token | Environment):
        return
    yield part
    for name in {name for kind in type(part).__mro__ for name in getattr(kind, "__slots__", ())}:
        yield from _walk(getattr(part, name, None))


def _names(heads: Any) -> frozenset[str]:
    found = list(heads)
    if not all(isinstance(head, str) for head in found):
        raise BadTemplate("A field is named by another field's value; write its name.")
    return frozenset(found)


def _bounded(source: str) -> str:
    """The library's parser takes time in the square of these."""
    for mark in ("{{", "{%", "[", "("):
        if source.count(mark) > MARKUP_LIMIT:
            raise BadTemplate(f"It has more than {MARKUP_LIMIT} of {mark}.")
    if len(source) > SOURCE_LIMIT:
        raise BadTemplate(f"It has {len(source):,} characters; {SOURCE_LIMIT:,} are allowed.")
    return source


def _reasons(parse: Callable[[], Any]) -> Any:
    """What it returns. Raises BadTemplate, with the line and column of the mistake."""
    try:
        return parse()
    except LiquidError as error:
        at = error.context() if error.token is not None else None
        where = f" at line {at[0]}, column {at[1] + 1}" if at else ""
        raise BadTemplate(f"It is not valid Liquid: {str(error.message).rstrip('.')}{where}.") from None
    except (ValueError, RecursionError) as error:
        what = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise BadTemplate(f"It is not valid Liquid: {what}.") from None


def _applied(apply: Callable[[], Any]) -> Any:
    try:
        return apply()
    except UndefinedError as error:
        raise Inapplicable("unknown_field", f"It has no such field: {error.message}.") from None
    except filters.LimitReached as error:
        raise Inapplicable("template_limit", f"The template is given up: {error}.") from None
    except LiquidError as error:
        code = "template_limit" if "limit" in type(error).__name__.lower() else "template_failed"
        raise Inapplicable(code, f"The template cannot be applied: {error.message}.") from None
    except Exception as error:  # a filter of the library got what it does not foresee
        raise Inapplicable("template_failed", f"The template cannot be applied: {error}."[:300]) from None
