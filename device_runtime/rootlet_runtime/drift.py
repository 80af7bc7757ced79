"""A drift alarm: has the stream of losses (or of 1 - confidence) risen for good?

Page-Hinkley's test (Page 1954), with the running mean ``m_t = (1/t) sum_i x_i`` up to and with x_t:

    S_t = sum_{i<=t} (x_i - m_i - delta)        alarm where S_t - min_{s<=t} S_s > threshold

``LossDrift`` runs it on values divided by the standard deviation of the first ``reference`` ones,
so that its numbers hold for any scale. The rates of false alarms and the delays measured for its
defaults are in ``docs/continual.md``; ``tests/device_runtime/test_drift.py`` holds them.
"""

import math

from rootlet_runtime.errors import DataError


class PageHinkley:
    """Page-Hinkley's test for a rise of the mean; state is five numbers.

    Args:
        delta: rise per value that is tolerated, in the values' unit.
        threshold: evidence for an alarm, in the values' unit.
        min_values: values before the first possible alarm.

    Raises:
        DataError: a number is out of bounds.
    """

    def __init__(self, *, delta: float, threshold: float, min_values: int = 30) -> None:
        if not (delta >= 0 and threshold > 0 and min_values >= 1):
            raise DataError(
                f"delta {delta}, threshold {threshold}, min_values {min_values}: must be at least "
                "0, above 0, and at least 1"
            )
        self._delta, self._threshold, self._min_values = delta, threshold, min_values
        self.reset()

    def reset(self) -> None:
        """Starts anew, as after an alarm that was dealt with."""
        self._count, self._mean, self._sum, self._least = 0, 0.0, 0.0, math.inf

    def update(self, value: float) -> bool:
        """Takes one value; whether there is an alarm. One that is not finite is an alarm."""
        if not math.isfinite(value):
            return True
        self._count += 1
        self._mean += (value - self._mean) / self._count
        self._sum += value - self._mean - self._delta
        self._least = min(self._least, self._sum)
        return self._count >= self._min_values and self._sum - self._least > self._threshold


class LossDrift:
    """Page-Hinkley's test in units of the stream's own standard deviation.

    The first ``reference`` values give mean and deviation, and raise no alarm. Later values are cut
    at ``cut`` deviations above that mean, so that a single outlier is no drift.

    Args:
        reference: values that the deviation is taken from.
        delta: tolerated rise, in deviations.
        threshold: evidence for an alarm, in deviations.
        cut: largest value counted, in deviations above the mean.

    Raises:
        DataError: a number is out of bounds.
    """

    def __init__(
        self,
        *,
        reference: int = 100,
        delta: float = 0.25,
        threshold: float = 35.0,
        cut: float = 4.0,
    ) -> None:
        if reference < 2 or not cut > 0:
            raise DataError(f"reference {reference}, cut {cut}: must be at least 2, and above 0")
        self._reference, self._cut = reference, cut
        self._test = PageHinkley(delta=delta, threshold=threshold)
        self.reset()

    def reset(self) -> None:
        """Takes a new reference: after an alarm, or after the adapter was replaced."""
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._test.reset()

    def update(self, loss: float) -> bool:
        """Takes the loss of one example; whether there is an alarm."""
        if not math.isfinite(loss):
            return True
        if self._count < self._reference:  # Welford's running variance
            self._count += 1
            difference = loss - self._mean
            self._mean += difference / self._count
            self._squares += difference * (loss - self._mean)
            return False
        deviation = math.sqrt(self._squares / (self._reference - 1))
        scaled = (loss - self._mean) / max(deviation, 1e-12)
        return self._test.update(min(scaled, self._cut))
