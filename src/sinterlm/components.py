"""Tables of components: Sinter's own, and those that installed packages add by entry points.

A component is named in a recipe by its ``kind`` (an engine by ``engine``). Its settings are a pydantic class that
declares the name as a literal; a table maps the names to these classes, and the recipe's schema is the union of a
table's classes. A package adds a component by an entry point in the table's group, under the component's name:

    [project.entry-points."sinterlm.scorers"]
    word-limit = "my_package.word_limit:WordLimit"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from importlib.metadata import EntryPoint, entry_points
from operator import or_
from typing import Annotated, Any, TypeVar, Union, cast, get_args

from pydantic import BaseModel, Discriminator, Field, Tag

from sinterlm.errors import InputError

RowT = TypeVar("RowT")


def with_installed(group: str, built_in: Mapping[str, RowT], expected: type[Any]) -> dict[str, RowT]:
    """A table of built-in components and those that installed packages offer under ``group``.

    Args:
        group: The group of entry points, e.g. ``sinterlm.scorers``.
        built_in: The table's own rows.
        expected: What a row must be: a subclass of this class if it is a settings class, otherwise an instance of it.

    Raises:
        InputError: A package's component cannot be imported, is not a complete component of this kind, or has the name
            of another.
    """
    table = dict(built_in)
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        package = _package_of(point)
        offer = f"the installed package {package} offers {point.name!r} ({group}: {point.value})"
        if point.name in table:
            raise InputError(f"{offer}, but this name is already taken; uninstall one of them")
        try:
            row = point.load()
        except (Exception, SystemExit) as error:  # whatever a package's own code raises
            problem = f"{type(error).__name__}: {error}"
            raise InputError(f"{offer}, which cannot be imported ({problem}); fix or uninstall the package") from error
        is_class = isinstance(row, type) and issubclass(row, expected)
        if not (is_class if issubclass(expected, BaseModel) else isinstance(row, expected)):
            raise InputError(f"{offer}, which is not of type {expected.__name__}; fix or uninstall the package")
        if lacking := _find_lacking(row):
            raise InputError(f"{offer}, which lacks {', '.join(lacking)}; fix or uninstall the package")
        table[point.name] = cast("RowT", row)
    return table


def find_packages(group: str) -> dict[str, str]:
    """The installed packages that offer components under ``group``, by the component's name."""
    return {point.name: _package_of(point) for point in entry_points(group=group)}


def _find_lacking(row: Any) -> list[str]:
    """What a class must say that its base only declares: abstract methods, and class variables without a value."""
    if not isinstance(row, type):
        return []
    declared = {
        name: None
        for base in row.__mro__
        for name, annotation in vars(base).get("__annotations__", {}).items()
        if str(annotation).startswith("ClassVar") and base.__module__.startswith("sinterlm.")
    }
    return [*sorted(getattr(row, "__abstractmethods__", ())), *(name for name in declared if not hasattr(row, name))]


def _package_of(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def union_of(
    table: Mapping[str, type[Any]], discriminator: str, engines: Mapping[str, Sequence[type[Any]]] | None = None
) -> Any:
    """The union of the table's classes, from which a recipe's mapping picks one by its key ``discriminator``.

    Args:
        table: Settings by name.
        discriminator: ``kind`` or ``engine``.
        engines: Further forms of a kind, by its name. They are picked by the key ``engine``, too; without that key the
            form in the table is meant.

    Raises:
        InputError: A class declares a name other than its name in the table.
    """
    for name, settings in table.items():
        field = settings.model_fields.get(discriminator)
        declared = get_args(field.annotation) if field else ()
        if declared != (name,):
            raise InputError(
                f"{settings.__module__}.{settings.__name__} is offered as {name!r}, but its {discriminator!r} is "
                f"declared as {' or '.join(map(repr, declared)) or 'no literal'}; fix or uninstall the package"
            )
    forms = [by_engine(form, *(engines or {}).get(name, ())) for name, form in table.items()]
    return Annotated[reduce(or_, forms), Field(discriminator=discriminator)]


def by_engine(default: type[Any], *others: type[Any]) -> Any:
    """The union of forms that the key ``engine`` tells apart; a mapping without it has the first form."""
    if not others:
        return default
    names = [str(*get_args(form.model_fields["engine"].annotation)) for form in (default, *others)]

    def engine(value: Any) -> str:  # messages say which key it reads by its name
        return str(value.get("engine", names[0]) if isinstance(value, Mapping) else getattr(value, "engine", names[0]))

    tagged = tuple(Annotated[form, Tag(name)] for form, name in zip((default, *others), names, strict=True))
    return Annotated[Union[tagged], Discriminator(engine)]  # noqa: UP007  # the number of forms is not known
