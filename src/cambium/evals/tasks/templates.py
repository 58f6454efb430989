"""Jinja templates of task files, rendered so that a hostile one gives an error and does not hang.

A template may loop, test and use the filters and string methods listed here. Every loop counts
against one budget, every value against one size; calls, macros, includes and imports are refused.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import regex
from jinja2 import StrictUndefined, TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cambium.evals.errors import TaskInvalid

MAX_TEMPLATE_CHARS = 20_000
MAX_CHARS = 1_000_000
MAX_STEPS = 100_000
MAX_SECONDS = 2.0
PATTERN_SECONDS = 2.0
_FILTERS = frozenset(
    [
        "abs",
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "first",
        "float",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "round",
        "select",
        "selectattr",
        "sort",
        "string",
        "sum",
        "title",
        "tojson",
        "trim",
        "unique",
        "upper",
        "wordcount",
    ]
)
_METHODS = frozenset(
    [
        "capitalize",
        "casefold",
        "count",
        "endswith",
        "find",
        "get",
        "index",
        "isalpha",
        "isdigit",
        "isspace",
        "items",
        "join",
        "keys",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rfind",
        "rindex",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "swapcase",
        "title",
        "upper",
        "values",
    ]
)
_REFUSED = (
    nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Include, nodes.Import,
    nodes.FromImport, nodes.Extends, nodes.Block, nodes.ExtensionAttribute,
)  # fmt: skip


class _TooMuch(TemplateError):
    """A template went over its budget."""


class _Budget:
    def __init__(self) -> None:
        self.steps = 0
        self.deadline = time.monotonic() + MAX_SECONDS

    def spend(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS or time.monotonic() > self.deadline:
            raise _TooMuch(f"it loops more than {MAX_STEPS} times or {MAX_SECONDS:g} s")


_budget: ContextVar[_Budget | None] = ContextVar("cambium_template_budget", default=None)


def _bounded(value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict) and _size(value) > MAX_CHARS:
        raise _TooMuch(f"it makes a value longer than {MAX_CHARS}")
    if isinstance(value, int) and value.bit_length() > 1024:
        raise _TooMuch("it makes a number of more than 1024 bits")
    return value


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    budget = _budget.get()
    for value in values:
        if budget is not None:
            budget.spend()
        yield value


def _guarded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Returns a filter or method whose arguments and result are held to the bounds."""

    def call(*args: Any, **kwargs: Any) -> Any:
        budget = _budget.get()
        if budget is not None:
            budget.spend()
        texts = [a for a in (*args, *kwargs.values()) if isinstance(a, str)]
        if name in ("replace", "join") and texts:
            # The longest product: each character, or each item, replaced by the longest other.
            longest = max(len(t) for t in texts)
            rest = sum(_size(a) for a in args) - longest
            if longest * max(rest, 1) > 100 * MAX_CHARS:
                raise _TooMuch(f"it makes a value longer than {MAX_CHARS}")
        return _bounded(function(*args, **kwargs))

    if hasattr(function, "jinja_pass_arg"):
        call.jinja_pass_arg = function.jinja_pass_arg  # pyright: ignore[reportFunctionMemberAccess]
    return call


def _size(value: Any, seen: dict[int, int] | None = None) -> int:
    """Returns how much there is to write out, what is held twice counted twice."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, list | tuple | dict):
        return 1
    seen = {} if seen is None else seen
    if id(value) not in seen:
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        seen[id(value)] = 1 + sum(_size(item, seen) for item in items)
    return seen[id(value)]


def _concat(values: Iterable[Any]) -> str:
    return _bounded("".join(_bounded(str(value)) for value in values))


def _regex_replace(string: str, pattern: str, repl: str, count: int = 0) -> str:
    """Does as the harness's filter of this name."""
    return _bounded(substitute(pattern, repl, string, count=count))


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, cache_size=0)
        self.globals = {"range": self._range}
        kept = {name: self.filters[name] for name in _FILTERS if name in self.filters}
        self.filters = {name: _guarded(function, name) for name, function in kept.items()}
        self.filters |= {
            "regex_replace": _regex_replace, "cambium_counted": _counted, "cambium_concat": _concat,
            "cambium_bounded": _bounded,
        }  # fmt: skip

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all(nodes.Node):
            if isinstance(node, _REFUSED) or (isinstance(node, nodes.For) and node.recursive):
                raise _TooMuch(f"it uses {type(node).__name__}, which task files may not")
        return _instrumented(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str | list | tuple | dict):
            return attr in _METHODS
        return type(obj).__name__ == "LoopContext" and attr in (
            "index", "index0", "first", "last", "length", "revindex", "revindex0",
        )  # fmt: skip

    def call(self, _context: Any, _obj: Any, *args: Any, **kwargs: Any) -> Any:
        if _obj != self._range:
            name = getattr(_obj, "__name__", "")
            held = getattr(_obj, "__self__", None)
            if name not in _METHODS or not isinstance(held, str | list | tuple | dict):
                raise _TooMuch(f"it calls {name or 'something'!r}, which task files may not")
            if name in ("replace", "join"):
                size = _size(held) * max([_size(a) for a in args] or [1])
                if size > 100 * MAX_CHARS:
                    raise _TooMuch(f"it makes a value longer than {MAX_CHARS}")
        return _bounded(super().call(_context, _obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [_size(side) for side in (left, right)]
        if operator == "*":
            texts = [side for side in (left, right) if not isinstance(side, int | float)]
            number = next((side for side in (left, right) if isinstance(side, int)), 1)
            if texts and _size(texts[0]) * number > MAX_CHARS:
                raise _TooMuch(f"it makes a value longer than {MAX_CHARS}")
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "**" and whole and abs(right) * left.bit_length() > 1024:
            raise _TooMuch("it makes a number of more than 1024 bits")
        if operator == "%" and not isinstance(left, int | float):
            raise _TooMuch("it formats with %, which task files may not")
        if operator == "+" and sum(sizes) > MAX_CHARS:
            raise _TooMuch(f"it makes a value longer than {MAX_CHARS}")
        return _bounded(super().call_binop(context, operator, left, right))

    def _range(self, *bounds: int) -> range:
        values = range(*bounds)
        if len(values) > MAX_STEPS:
            raise _TooMuch(f"it counts over more than {MAX_STEPS} numbers")
        return values


def _instrumented(tree: nodes.Template) -> nodes.Template:
    """Makes every loop count, and every list, every dictionary and every `~` be bounded."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _filter(loop.iter, "cambium_counted")  # pyright: ignore[reportArgumentType]
    return _guarding(tree)


def _guarding(node: Any) -> Any:
    for field, value in list(node.iter_fields()):
        if isinstance(value, list):
            value[:] = [_guarding(v) if isinstance(v, nodes.Node) else v for v in value]
        elif isinstance(value, nodes.Node):
            setattr(node, field, _guarding(value))
    if isinstance(node, nodes.Concat):
        return _filter(nodes.List(node.nodes, lineno=node.lineno), "cambium_concat")
    loaded = isinstance(node, nodes.Tuple) and node.ctx == "load"
    if isinstance(node, nodes.List | nodes.Dict) or loaded:
        return _filter(node, "cambium_bounded")
    return node


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    made = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
    made.set_environment(node.environment) if node.environment else None
    return made


_ENVIRONMENT = _Environment()


@lru_cache(maxsize=512)
def _compiled(source: str) -> Any:
    if len(source) > MAX_TEMPLATE_CHARS:
        raise _TooMuch(f"it is longer than {MAX_TEMPLATE_CHARS} characters")
    return _ENVIRONMENT.from_string(source)


def check(source: str) -> None:
    """Compiles a template.

    Raises:
        TaskInvalid: it is no template, or uses what task files may not.
    """
    _told(source, lambda: _compiled(source))


def render(source: str, doc: Mapping[str, Any]) -> str:
    """Returns the template filled with a document's fields.

    Raises:
        TaskInvalid: it names a field that is not there, or goes over its bounds.
    """

    def fill() -> str:
        token = _budget.set(_Budget())
        try:
            parts, size = [], 0
            for part in _compiled(source).generate(**doc):
                parts.append(part)
                size += len(part)
                if size > MAX_CHARS:
                    raise _TooMuch(f"it makes a text longer than {MAX_CHARS}")
            return "".join(parts)
        finally:
            _budget.reset(token)

    return _told(source, fill)


def literal(text: str) -> Any:
    """Returns the Python literal that `text` spells: a list, a number, a string.

    Raises:
        ValueError: it spells none.
    """
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError(f"not a literal: {text[:60]!r}") from error


def findall(pattern: str, text: str) -> list[Any]:
    """Returns what a task file's pattern finds, as `re.findall`, within a time limit."""
    return _matching(pattern, lambda p: p.findall(text, timeout=PATTERN_SECONDS))


def substitute(pattern: str, repl: str, text: str, *, count: int = 0) -> str:
    """Returns `text` with a task file's pattern replaced, as `re.sub`, within a time limit."""
    return _matching(pattern, lambda p: p.sub(repl, text, count=count, timeout=PATTERN_SECONDS))


def _matching(pattern: str, use: Callable[[Any], Any]) -> Any:
    try:
        return use(regex.compile(pattern))
    except (regex.error, IndexError, RecursionError, TypeError, OverflowError) as error:
        raise TaskInvalid(f"the pattern {pattern[:60]!r} cannot be used: {error}",
                          mend="mend it in the task file") from error  # fmt: skip
    except TimeoutError as error:
        raise TaskInvalid(f"the pattern {pattern[:60]!r} takes more than {PATTERN_SECONDS:g} s",
                          mend="write it without nested repetition") from error  # fmt: skip


def _told(source: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except TaskInvalid:
        raise
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError,
            RecursionError, MemoryError, SyntaxError) as error:  # fmt: skip
        raise TaskInvalid(
            f"the template {source[:60]!r} cannot be rendered: {str(error)[:200]}",
            mend="mend it in the task file, or the field's name",
        ) from error
