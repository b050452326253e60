"""Results that are remembered no longer than what they were worked out from."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Concatenate


def while_alive[Owner, **Rest, Result](
    fun: Callable[Concatenate[Owner, Rest], Result],
) -> Callable[Concatenate[Owner, Rest], Result]:
    """The same function, which remembers its results as long as the first argument lives.

    Args:
      fun: of hashable arguments; its results must not refer to the first one, or that would live forever.
    """
    known: weakref.WeakKeyDictionary[Any, dict[Hashable, Result]] = weakref.WeakKeyDictionary()

    @functools.wraps(fun)
    def remembered(owner: Owner, /, *rest: Rest.args, **named: Rest.kwargs) -> Result:
        results, key = known.setdefault(owner, {}), (rest, *named.items())
        if key not in results:
            results[key] = fun(owner, *rest, **named)
        return results[key]

    return remembered
