"""The one exception that users are meant to read."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user can fix: a name, a file, a setting.

    The message is one line that names the thing and the way out. The command line prints it and ends with
    `exit_code`.

    Example:
        >>> import deepres
        >>> try:
        ...     deepres.get_recipe("fasd")
        ... except deepres.UserError as error:
        ...     print(str(error).partition(":")[0])
        unknown recipe 'fasd' (did you mean fast?)
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type's name if it has none."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()


@contextmanager
def extra_needed(what: str, extra: str) -> Iterator[None]:
    """Turn a package that is missing into an error that names it and the extra that brings it.

    Args:
        what: needs the package; the subject of the message.
        extra: what to install deepres with, such as "report".
    """
    try:
        yield
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        raise UserError(f"{what} needs {package}: pip install 'deepres[{extra}]'") from None


def unknown_name(kind: str, name: object, choices: Iterable[object]) -> UserError:
    """Return the error for a name that is none of `choices`: it lists them and points to the nearest."""
    listed = [str(choice) for choice in choices]
    near = get_close_matches(str(name), listed, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return UserError(f"unknown {kind} {name!r}{hint}: choose from {', '.join(listed)}")
