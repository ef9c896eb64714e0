"""The one error class of kerascohost, and the helpers that put a member's name on a failure."""

import contextlib
import difflib
import operator
from collections.abc import Iterable, Iterator


class CohortError(ValueError):
    """Something in a cohort, or in what was asked of it, cannot work.

    Raised before training starts wherever that is possible. The message says what was expected,
    what was received, which member it is about and, where there is one, the way out.
    """


@contextlib.contextmanager
def about(member: str) -> Iterator[None]:
    """Lets every exception that leaves the block say which member it belongs to.

    Bad values (`ValueError`, `TypeError`) become a `CohortError` that names the member. Anything
    else keeps its type, as separate training would have raised it, and gets a note.
    """
    try:
        yield
    except CohortError as error:
        if is_attributed(error):
            raise
        raise attributed(CohortError(_named(member, error)), member) from error.__cause__
    except (ValueError, TypeError) as error:
        if is_attributed(error):
            raise
        raise attributed(CohortError(_named(member, error)), member) from error
    except Exception as error:
        attributed(error, member)
        raise


@contextlib.contextmanager
def concerning(argument: str) -> Iterator[None]:
    """Lets bad values in the block say in which argument they were found."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise CohortError(f"{argument}: {error}") from error


def _named(member: str, error: Exception) -> str:
    text = str(error)
    if isinstance(error, CohortError):  # ours begin with a word, not with a name
        text = text[:1].lower() + text[1:]
    return f"Member {member!r}: {text}"


def attributed(error: Exception, member: str) -> Exception:
    """`error`, marked once as belonging to `member`."""
    if not is_attributed(error):
        if not isinstance(error, CohortError):
            error.add_note(f"Raised while running member {member!r} of the cohort.")
        error.cohort_member = member  # type: ignore[attr-defined]  # read by `is_attributed`
    return error


def is_attributed(error: BaseException) -> bool:
    """Whether `error` is already known to belong to one member."""
    return hasattr(error, "cohort_member")


def member_of(error: BaseException) -> str:
    """The member to which an attributed error belongs."""
    return error.cohort_member  # type: ignore[attr-defined]  # set by `attributed`


def not_of_fit(name: str, value: object, known: Iterable[str]) -> str:
    """What to say of an argument that `fit` does not have."""
    return (
        f"Expected arguments of `keras.Model.fit`. Received: {name}={value!r}."
        f"{did_you_mean(name, known)}"
    )


def is_count(value: object, least: int = 0) -> bool:
    """Whether `value` is an integer, also one of NumPy or a tensor, that is not below `least`."""
    try:
        return operator.index(value) >= least  # type: ignore[arg-type]  # tried
    except TypeError:
        return False


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A sentence with the known name nearest to `name`, or nothing where none is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
