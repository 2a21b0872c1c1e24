"""The upper envelope of many polynomials: which of them can be the highest.

An example. Of the rows ``640 + 3 s``, ``512 + 3 s`` and ``100 + 5 s``, for lengths ``s`` from 64 on, the second goes:
it is below the first by 128 whatever ``s`` is. Between the other two it depends: at 64 tokens the first is higher by
412, beyond 270 the third is; both stay. With ``s = 64 + t`` they are ``832 + 3 t`` and ``420 + 5 t``: the difference,
``412 - 2 t``, has coefficients of both signs. Had it none below zero, the third could go.
"""

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fitplan.cuda import GRANULE

Counts = NDArray[np.int64]


class Envelope:
    """Rows, as polynomials with whole coefficients, of which those go that never are the highest.

    One polynomial never exceeds another if their difference, written in what each length exceeds its least value by,
    has no negative coefficient. A rounded block may count for up to 511 bytes more. Of rows that may be equal,
    the earliest stays.
    """

    def __init__(self, polynomials: Counts, loose: Counts, later: Counts, with_states: NDArray[np.bool_]) -> None:
        self._polynomials, self._loose = polynomials, loose
        self._later, self._with_states = later, with_states
        self._alive = np.ones(len(polynomials), dtype=bool)

    def alive(self) -> list[int]:
        """The rows that are left."""
        return [int(place) for place in np.flatnonzero(self._alive)]

    def drop_exceeded(self, probe: NDArray[np.float64]) -> None:
        """Drop what a single other row exceeds; those that are highest at ``probe`` are tried first."""
        waiting = self._alive.copy()
        for place in np.argsort(-(self._polynomials @ probe), kind="stable"):
            if not self._alive[place]:
                continue
            waiting[place] = False
            others = np.flatnonzero(self._alive)
            difference = self._polynomials[place] - self._polynomials[others]
            difference[:, 0] -= (GRANULE - 1) * np.maximum(self._loose[others] - self._loose[place], 0).sum(axis=1)
            below = (difference >= 0).all(axis=1) & self._may_stand_for(place, others)
            below &= ((difference[:, 0] > 0) | (others > place)) & (others != place)
            self._alive[others[below]] = False

    def drop_between(self, pairs: list[tuple[int, int]]) -> None:
        """Drop what lies under a mean of two other rows, and so under the higher of them wherever one looks.

        From layer to layer activations go and gradients come, so what lies between the first and the last is a mean.
        """
        for first, last in pairs:
            if not (self._alive[first] and self._alive[last]):
                continue
            others = np.flatnonzero(self._alive)
            others = others[(others != first) & (others != last)]
            others = others[self._may_stand_for(first, others) & self._may_stand_for(last, others)]
            for other in others:
                if self._is_under_mean(int(other), first, last):
                    self._alive[other] = False

    def drop_under_means(self) -> None:
        """The same, with any two of the rows that are left."""
        for other in self.alive():
            rows = np.array([place for place in self.alive() if place != other], dtype=np.int64)
            rows = rows[self._may_stand_for_one(rows, other)]
            if len(rows) < 2:
                continue
            one, two = (rows[index] for index in np.triu_indices(len(rows), 1))
            above = (self._polynomials[one] - self._polynomials[two]).astype(np.float64)
            needed = (self._polynomials[other] - self._polynomials[two]).astype(np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = needed / above
            least = np.where(above > 0, share, 0.0).max(axis=1)
            most = np.where(above < 0, share, 1.0).min(axis=1)
            possible = (least <= most + 1e-9) & (least <= 1) & (most >= 0) & ((above != 0) | (needed <= 0)).all(axis=1)
            for place in np.flatnonzero(possible)[:8]:
                if self._is_under_mean(other, int(one[place]), int(two[place])):
                    self._alive[other] = False
                    break

    def _may_stand_for_one(self, places: Counts, other: int) -> NDArray[np.bool_]:
        present: NDArray[np.bool_] = (self._later[places] <= self._later[other]) & (
            self._with_states[places] >= self._with_states[other]
        )
        return present

    def _may_stand_for(self, place: int, others: Counts) -> NDArray[np.bool_]:
        present: NDArray[np.bool_] = (self._later[place] <= self._later[others]) & (
            self._with_states[place] >= self._with_states[others]
        )
        return present

    def _is_under_mean(self, other: int, first: int, last: int) -> bool:
        """Whether some share of ``first`` and the rest of ``last`` are together at least ``other``, in every term."""
        above = self._polynomials[first] - self._polynomials[last]
        needed = self._polynomials[other] - self._polynomials[last]
        if (needed[above == 0] > 0).any():
            return False
        pairs = set(zip(needed.tolist(), above.tolist(), strict=True))
        least = max((Fraction(n, a) for n, a in pairs if a > 0), default=Fraction(0))
        most = min((Fraction(n, a) for n, a in pairs if a < 0), default=Fraction(1))
        least, most = max(least, Fraction(0)), min(most, Fraction(1))
        return least <= most and not all(self._rounds_beyond(other, first, last, share) for share in (least, most))

    def _rounds_beyond(self, other: int, first: int, last: int, share: Fraction) -> bool:
        counts, a, b = self._loose[other], self._loose[first], self._loose[last]
        open_ = np.flatnonzero(counts > np.minimum(a, b))  # elsewhere no mean is less
        return any(
            int(n) > share * int(x) + (1 - share) * int(y)
            for n, x, y in zip(counts[open_], a[open_], b[open_], strict=True)
        )
