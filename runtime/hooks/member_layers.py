"""The layers on the members of units: which modules are wrapped, and whether they still are."""

from torch import nn

from cachesmith.policies import PolicyError
from cachesmith.runtime.hooks.idle import idle_members
from cachesmith.runtime.hooks.module_calls import Wrap, call_name, layer_on_call
from cachesmith.runtime.hooks.patch import Layer
from cachesmith.runtime.hooks.unit_call import TransformerCall, UnitState
from cachesmith.runtime.models.snapshot import slots
from cachesmith.runtime.models.units import Unit, network_units


class MemberLayer:
    """Wraps the calls of one module, in its place `holder[key]`."""

    def __init__(self, module: nn.Module, wrap: Wrap, place: tuple[nn.Module, str]):
        self.module, self._wrap, self._place = module, wrap, place
        self._layer = self._new()

    @property
    def moved(self) -> bool:
        """Whether another module took the place of this one, as loading a LoRA does."""
        holder, key = self._place
        return holder._modules.get(key) is not self.module

    def refresh(self) -> None:
        """Be on top of whatever was put over the layer, or in its place, since the last call."""
        if self._layer.on_top and self._layer.name == call_name(self.module):
            return
        self._layer.remove()
        self._layer = self._new()

    def remove(self) -> None:
        """Leave the module as it would be without us."""
        self._layer.remove()

    def _new(self) -> Layer:
        return layer_on_call(self.module, self._wrap)


class MemberLayers:
    """All layers of one attachment; `bind` moves them to other units."""

    def __init__(self, transformer: nn.Module, call: TransformerCall):
        self._transformer, self._call = transformer, call
        self._layers: list[MemberLayer] = []

    def bind(self, units: tuple[Unit, ...]) -> None:
        """Route the calls of the members of `units` and of idle lists, and no others."""
        self.remove()
        parts, idle = network_units(units), [*idle_members(self._transformer, self._call)]
        members = [*(module for unit in parts for module in unit.members), *(module for module, _ in idle)]
        slot = iter(slots(self._transformer, members))
        for unit in parts:
            state = UnitState(unit, self._call)
            for position, module in enumerate(unit.members):
                self._layers.append(MemberLayer(module, state.member(position), next(slot)))
        for module, wrap in idle:
            self._layers.append(MemberLayer(module, wrap, next(slot)))

    def refresh(self) -> None:
        """Before a transformer call. Raises `PolicyError` where modules were replaced in the middle of a run."""
        if any(layer.moved for layer in self._layers):
            raise PolicyError(
                "modules of the transformer were replaced during a run under a policy, as loading a LoRA does; "
                "load it between two requests"
            )
        for layer in self._layers:
            layer.refresh()

    def remove(self) -> None:
        """Take all layers off, the last one first."""
        while self._layers:
            self._layers.pop().remove()
