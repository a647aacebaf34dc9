"""What a shard has to be told again, so that another one is where it was."""

from cachesmith.calibrate.fleet.wire import Call


class Journal:
    """The calls that made a shard's state, without those that came to nothing."""

    def __init__(self) -> None:
        self._references: list[Call] = []
        self._walk: list[Call] = []
        self._open: dict[str, list[Call]] = {}

    @property
    def calls(self) -> list[Call]:
        """All of them, in order."""
        return [*self._references, *self._walk, *(call for part in self._open.values() for call in part)]

    def add(self, call: Call) -> None:
        """A call was answered."""
        match call.name:
            case "reference":
                self._references.append(call)
            case "begin":
                self._walk, self._open = [call], {}
            case "compute":
                self._walk.append(call)
            case "equations":
                if all(each.name != "equations" for each in self._walk):
                    # a walk's first ones choose the combinations of latents that all later ones are made with
                    self._walk.append(call)
                self._open["equations"] = [call]
            case "sums":
                self._open.pop("equations", None)
            case _:
                self._add_walk(call)

    def _add_walk(self, call: Call) -> None:
        match call.name:
            case "go":
                self._open = {"last": [call]}
            case "settle":
                self._walk += [*self._open["last"], call]
                self._open = {}
