"""Whether a stream of images has drifted, tested after every image, with a stated false-alarm rate.

Each score becomes a conformal p-value against all before it, the calibration's included. As long as
the images are exchangeable these are independent and uniform, whatever the scores' distribution
(Vovk, Gammerman & Shafer 2005, theorem 8.2). Bets against that multiply; an alarm rings when their
sum over all possible times of change is large (Shiryaev-Roberts on e-values: Vovk et al. 2021,
"Retrain or not retrain"; Shin, Ramdas & Rinaldo 2022, "E-detectors").
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

import numpy as np

# a bet: of the money, this share is on the p-value falling into the tail of this size
TAILS = (0.001, 0.005, 0.02, 0.1, 0.5)
SHARES = (0.005, 0.02, 0.1, 0.3, 0.7)


class DriftTest:
    """Tests after every score whether the stream has drifted.

    run: in-domain images that pass on average, at least, before a false alarm, however long it
        watches.
    evidence: evidence of drift, the Shiryaev-Roberts statistic averaged over bets. A bet pays on
        average what it costs, so after n in-domain images it is n on average. At `run` the alarm
        rings, and all starts anew.
    """

    def __init__(self, calibration: Iterable[float], *, run: float, seed: int = 0) -> None:
        """Take the calibration's scores, and how many images a false alarm must take on average."""
        self._calibration = sorted(calibration)
        self.run, self._seed = run, seed
        tails, shares = np.meshgrid(TAILS, SHARES)
        self._tails, self._shares = tails.ravel(), shares.ravel()
        self.seen = 0
        self._restart()

    def _restart(self) -> None:
        self._known = list(self._calibration)
        self._sums = np.zeros((2, len(self._tails)))  # bets on odd images, and on too usual ones
        self.since = 0  # images since the last alarm

    @property
    def evidence(self) -> float:
        """How much speaks for a drift; about the number of images watched when there is none."""
        return float(self._sums.mean())

    def update(self, score: float) -> bool:
        """Take the next image's score into account; whether this rings the alarm."""
        p = self.p_value(score)
        insort(self._known, score)
        self.seen += 1
        self.since += 1
        self._sums = (1 + self._sums) * self.bets(p)
        if self.evidence < self.run:
            return False
        self._restart()
        return True

    def p_value(self, score: float) -> float:
        """The next image's conformal p-value, in (0, 1); ties are broken at random, by the seed."""
        above = len(self._known) - bisect_right(self._known, score)
        ties = bisect_right(self._known, score) - bisect_left(self._known, score)
        chance = np.random.default_rng((self._seed, self.seen)).random()
        return float((above + chance * (1 + ties)) / (len(self._known) + 1))

    def bets(self, p: float) -> np.ndarray:
        """(2, bets): what one unit becomes; its mean over uniform p is 1."""
        wins = np.stack([p <= self._tails, p >= 1 - self._tails])
        paid: np.ndarray = 1 + self._shares * (wins / self._tails - 1)
        return paid

    def alarms(self, scores: Iterable[float]) -> Iterator[int]:
        """The places of a stream at which an alarm rings."""
        for place, score in enumerate(scores):
            if self.update(score):
                yield place
