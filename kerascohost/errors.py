"""The one error class of kerascohost, and the helpers that put a member's name on a failure."""

import contextlib
import contextvars
import difflib
import operator
from collections.abc import Iterable, Iterator, Mapping


class CohortError(ValueError):
    """An error for a cohort, or for arguments given to it, that cannot work.

    It is raised before training starts wherever that is possible. The message says what was
    expected, what was received, which member it is about and, where there is one, what to do
    instead.

    Example:

    >>> import kerascohost as kc
    >>> try:
    ...     kc.Cohort([])
    ... except kc.CohortError as error:
    ...     print(error)
    Expected at least one model. Received: models=[]
    """


# The member whose code is running, for what it prints in a worker.
running: contextvars.ContextVar[str] = contextvars.ContextVar("running", default="")


@contextlib.contextmanager
def about(member: str) -> Iterator[None]:
    """Adds the member's name to every exception that leaves the block.

    A `CohortError` gets the member's name into its message. Anything else is what separate training
    would have raised: it keeps its type and its text, so that `except TypeError` in a program goes
    on working, and gets a note.
    """
    outside = running.set(member)
    try:
        yield
    except CohortError as error:
        if is_attributed(error):
            raise
        raise attributed(CohortError(_named(member, error)), member) from error.__cause__
    except Exception as error:
        attributed(error, member)
        raise
    finally:
        running.reset(outside)


@contextlib.contextmanager
def concerning(argument: str) -> Iterator[None]:
    """Adds the argument's name to every exception that leaves the block."""
    try:
        yield
    except CohortError as error:
        raise CohortError(f"{argument}: {error}") from error.__cause__
    except Exception as error:
        error.add_note(f"Found in `{argument}`.")
        raise


def _named(member: str, error: CohortError) -> str:
    text = str(error)
    return f"Member {member!r}: {text[:1].lower()}{text[1:]}"


def attributed(error: Exception, member: str) -> Exception:
    """Returns `error`, marked once as belonging to `member`."""
    if not is_attributed(error):
        if not isinstance(error, CohortError):
            error.add_note(f"Raised while running member {member!r} of the cohort.")
        error.cohort_member = member  # type: ignore[attr-defined]  # read by `is_attributed`
    return error


def note_others(error: BaseException, failed: Mapping[str, BaseException | None]) -> None:
    """Adds a note for each failure beside the one that is raised.

    Args:
        error: What is raised, a failure or an interrupt.
        failed: What ended each part, if an exception did, by the words for that part.
    """
    for name, other in failed.items():
        if other is not None and other is not error:
            error.add_note(f"{name} failed, too: {other!r}.")


def is_attributed(error: BaseException) -> bool:
    """Returns whether `error` is already marked as belonging to a member."""
    return hasattr(error, "cohort_member")


def member_of(error: BaseException) -> str:
    """Returns the name of the member to which an attributed error belongs."""
    return error.cohort_member  # type: ignore[attr-defined]  # set by `attributed`


def in_words(error: Exception) -> str:
    """Returns a failure in one line: its type (but for a `CohortError`), text and notes."""
    kind = "" if isinstance(error, CohortError) else f"{type(error).__name__}: "
    text, notes = f"{kind}{error}", getattr(error, "__notes__", ())
    stop = "." if notes and text[-1:].isalnum() else ""
    return " ".join([text + stop, *notes])


def not_of_fit(name: str, value: object, known: Iterable[str]) -> str:
    """Returns the error text for an argument that `fit` does not have."""
    return (
        f"Expected arguments of `keras.Model.fit`. Received: {name}={value!r}."
        f"{did_you_mean(name, known)}"
    )


def is_count(value: object, least: int = 0) -> bool:
    """Returns whether `value` is an integer, also of NumPy or a tensor, of at least `least`."""
    try:
        return operator.index(value) >= least  # type: ignore[arg-type]  # tried
    except TypeError:
        return False


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Returns a sentence with the known name nearest to `name`; empty if none is near."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    if not near:
        near = [one for one in known if str(one).lower() == str(name).lower()]
    return f" Did you mean {near[0]!r}?" if near else ""
