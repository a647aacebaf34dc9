"""How many bytes a session holds, counted as it goes."""

from collections import Counter
from collections.abc import Iterable

from torch import Tensor


class Ledger:
    """Bytes of the tensors held now, and at most so far; a tensor that several hold counts once."""

    def __init__(self) -> None:
        self.bytes = 0
        self.peak = 0
        self._holders: Counter[int] = Counter()

    def swap(self, before: Iterable[Tensor], after: Iterable[Tensor]) -> None:
        """One holder held `before` and now holds `after`; all of them must be alive during this call."""
        for tensor in after:
            self._holders[id(tensor)] += 1
            if self._holders[id(tensor)] == 1:
                self.bytes += tensor.nbytes
        for tensor in before:
            self._holders[id(tensor)] -= 1
            if not self._holders[id(tensor)]:
                del self._holders[id(tensor)]
                self.bytes -= tensor.nbytes
        self.peak = max(self.peak, self.bytes)
