"""The plan of a cohort: which member runs in which layout, and why."""

from collections.abc import Sequence

import pandas as pd

from kerascohost.results.table import Table


class Plan:
    """The placement of the members of a cohort in its program.

    Args:
        rows: For each member `member`, `layout`, `stack`, `batch_size`, `differs`, `measured` and
            `reason`.

    Attributes:
        frame: A DataFrame with a row for each member:
            `member`: its name;
            `layout`: `"stacked"` or `"joined"`;
            `stack`: the number of its stack, from 1, or missing;
            `batch_size`: the samples in one step of it, missing before the first `fit`;
            `differs`: the hyperparameters that are not the same in all members of its stack;
            `measured`: the milliseconds of a step of its stack and of its members joined, if
            `layout="auto"` has measured them, or empty;
            `reason`: why it is not stacked, or empty.

    Example:

    >>> plan = Plan([
    ...     {"member": "a", "layout": "stacked", "stack": 1, "batch_size": 32},
    ...     {"member": "b", "layout": "stacked", "stack": 1, "batch_size": 32},
    ...     {"member": "c", "layout": "joined", "reason": "runs eagerly"}])
    >>> plan.summary
    '2 members in 1 stack, 1 joined (c: runs eagerly)'
    """

    _COLUMNS = ("member", "layout", "stack", "batch_size", "differs", "measured", "reason")

    def __init__(self, rows: Sequence[dict[str, str | int | None]]):
        whole = [{"differs": "", "measured": "", "reason": "", **row} for row in rows]
        self.frame = pd.DataFrame(whole, columns=list(self._COLUMNS))
        self.frame = self.frame.astype({"stack": "Int64", "batch_size": "Int64"})

    @property
    def members(self) -> list[str]:
        """The names of the members."""
        return list(self.frame["member"])

    def stack_of(self, member: str) -> int | None:
        """Returns the number of a member's stack; `None` if it is joined."""
        number = self.frame.set_index("member")["stack"][member]
        return None if pd.isna(number) else int(number)

    @property
    def summary(self) -> str:
        """The plan in a line."""
        stacks = self.frame["stack"].nunique()
        joined = self.frame[self.frame["layout"] == "joined"]
        parts = []
        if stacks:
            stacked = len(self.frame) - len(joined)
            parts.append(f"{stacked} members in {stacks} stack{'s' if stacks > 1 else ''}")
        if len(joined):
            members: dict[str, list[str]] = {}
            for member, reason in zip(joined["member"], joined["reason"], strict=True):
                members.setdefault(reason, []).append(member)
            why = [
                ", ".join(names) + (f": {reason}" if reason else "")
                for reason, names in members.items()
            ]
            parts.append(f"{len(joined)} joined ({'; '.join(why)})")
        return ", ".join(parts)

    @property
    def _table(self) -> Table:
        return Table(self.frame.astype(object).where(self.frame.notna(), ""), [self.summary])

    def __repr__(self) -> str:
        return self._table.text()

    def _repr_html_(self) -> str:
        return self._table.html()
