"""Solutions of exercises and hunts as code cells that run by themselves, read from the registers."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from importlib import import_module
from inspect import isclass, isfunction, ismodule
from typing import Any

from labcore.lab import exercises, hunts
from labcore.lab.exercises.desk import source_of


def cell_of(id: str) -> str:
    """The code that solves an exercise ("02.3") or a hunt ("02.A") and has it checked.

    Raises LessonError for an unknown id.
    """
    if id[-1:].isalpha():
        return _hunt(hunts.find(id))
    solution = exercises.find(id).solution
    if not callable(solution):
        return f'lab.check("{id}", {solution!r})'
    return f'{runnable(solution)}\n\n\nlab.check("{id}", {solution.__name__})'


def why(id: str) -> str:
    """What explains a solution beside its code; empty where the code says it all."""
    return "" if id[-1:].isalpha() else exercises.find(id).why


def hints(id: str) -> tuple[str, ...]:
    """The rungs of the ladder, the weakest first."""
    return hunts.find(id).hints if id[-1:].isalpha() else exercises.find(id).hints


def runnable(function: Callable[..., Any]) -> str:
    """A function's source behind the imports and helpers of its home module that it uses."""
    imports: dict[str, None] = {}
    sources: dict[str, str] = {}
    _collect(function, imports, sources)
    head = "\n".join(sorted(imports))
    return "\n\n\n".join([*([head] if head else []), *sources.values()])


def _hunt(bug: hunts.Hunt) -> str:
    """labcore's own function under the hunt's decorator, which runs it at home; its types are imported."""
    source, home = source_of(bug.original), bug.original.__module__
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    types = [node for node in (*(word.annotation for word in given), function.returns) if node is not None]
    imports: dict[str, None] = {}
    for name in sorted({name for node in types for name in _names(node)}):
        if (found := vars(import_module(home)).get(name)) is not None:
            imports[_import(found, name, home)] = None
    head = "\n".join(sorted(imports))
    return f'{head}\n\n\n@lab.hunt("{bug.id}")\n{source}'.lstrip()


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _collect(function: Callable[..., Any], imports: dict[str, None], sources: dict[str, str]) -> None:
    """Add what a function needs: helpers of its own module as source, everything else as an import."""
    source, home = source_of(function), function.__module__
    for name in sorted(_names(ast.parse(source))):
        found = vars(import_module(home)).get(name)
        if found is None or found is function or hasattr(builtins, name):
            continue
        if (isfunction(found) or isclass(found)) and found.__module__ == home:
            if name not in sources:
                _collect(found, imports, sources)
        else:
            imports[_import(found, name, home)] = None
    sources[function.__name__] = source


def _import(found: Any, name: str, home: str) -> str:
    """The line that imports a name: from the module that defines it, else from the one that uses it."""
    if ismodule(found):
        return f"import {found.__name__}" + (f" as {name}" if name != found.__name__ else "")
    defined = getattr(found, "__module__", None)
    if isinstance(defined, str) and getattr(import_module(defined), name, None) is found:
        home = defined
    return f"from {home} import {name}"
