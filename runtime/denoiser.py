"""One denoiser of a pipeline under a policy: its units, and what is checked before each of its runs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from cachesmith.policies import MAIN, Policy, PolicyError, Stack, denoiser_policy
from cachesmith.policies.profile import has_fitted
from cachesmith.runtime.discovery.first_call import learned_at_first_call
from cachesmith.runtime.engines.bundle import BoundEngines
from cachesmith.runtime.hooks.attach import attach, contexts_heard
from cachesmith.runtime.hooks.clock import Clock
from cachesmith.runtime.hooks.member_layers import MemberLayers
from cachesmith.runtime.match import Match, check_denoisers
from cachesmith.runtime.models.adapters import known_adapter
from cachesmith.runtime.models.denoisers import part_name
from cachesmith.runtime.models.sampler import axis_values, is_flow, noise_levels
from cachesmith.runtime.models.snapshot import Network, look
from cachesmith.runtime.models.units import BlockRun, Unit, network_units, resolve_units, units_of
from cachesmith.runtime.other_caches import check_no_other_cache
from cachesmith.runtime.plan.compile_plan import compile_plan
from cachesmith.runtime.plan.plan import Plan
from cachesmith.runtime.runs.guidance import GuidanceRunner, guided
from cachesmith.runtime.runs.session import Session


class Denoiser:
    """A transformer that runs under a policy's `profile`; `clock` is that of the whole pipeline.

    Raises `PolicyError` where the policy does not fit, now or at the first step of a run.
    """

    def __init__(self, name: str, transformer: nn.Module, policy: Policy, profile: str | None, clock: Clock):
        self.name, self.transformer, self.policy = name, transformer, policy
        self.profile = policy.profile(profile)
        self.clock = clock
        self.others: tuple[Denoiser, ...] = ()
        self._match = Match(policy)
        self._layers: MemberLayers | None = None
        self._engines: BoundEngines | None = None
        self._plans: dict[tuple[float, ...], Plan] = {}
        network = look(transformer)
        self._snapshot = network.snapshot
        check_no_other_cache(name, network)
        self._fits = self._compare(network)
        self.units = self._resolve()

    @contextmanager
    def attached(self, session: Session, engines: BoundEngines | None = None) -> Iterator[None]:
        """Route the transformer's calls through `session` until the context is left."""
        self._session, self._engines = session, engines
        session.follow(self._plan)

        @contextmanager
        def routed() -> Iterator[None]:
            self.units = self.units or self._resolve()
            runner = guided(session, self.units, session.computes, session.holds)

            def foresees() -> bool:
                units = runner.units(self.units) if isinstance(runner, GuidanceRunner) else self.units
                return bool(units) and session.foresees(units)

            with attach(self.transformer, self.units, runner, self.clock, engines, foresees) as self._layers:
                yield

        with ExitStack() as stack:
            stack.callback(session.free)
            if self._fits and known_adapter(self.transformer) is None:
                whole = isinstance(self.profile.units, Stack)
                # the first call lies in a context that is open before it is attached
                stack.enter_context(contexts_heard(self.transformer, self.clock))
                stack.enter_context(learned_at_first_call(self.transformer, routed, whole))
            else:
                stack.enter_context(routed())
            yield
            session.close()

    def free(self) -> None:
        """Another denoiser takes over: what this one remembers will not be forecast from any more."""
        self._session.free()

    def _compare(self, network: Network) -> bool:
        return self._match.model(network)

    def _resolve(self) -> tuple[Unit, ...]:
        """The profile's units; none where the policy is disabled for another model, which may not have them, and none
        yet of a class whose blocks its first call is to tell."""
        if known_adapter(self.transformer) is None:
            return ()
        try:
            return units_of(resolve_units(self.transformer, self.profile.units), self.name)
        except PolicyError:
            if self._fits:
                raise
            return ()

    def _plan(self, start: int) -> Plan | None:
        """The plan of a run that begins at step `start`; None where nothing of it is to be forecast."""
        if self.clock.refused is not None:
            self._session.stats.fall_back(self.clock.refused)
            return None
        self.begin(start)
        network = look(self.transformer, self._snapshot)
        self._snapshot = network.snapshot
        check_no_other_cache(self.name, network)
        self._rebind()
        if self._engines is not None:
            self._engines.begin(network)
        scheduler = self.clock.scheduler
        fits = self._compare(network) and self._match.sampling(scheduler, self.clock.call)
        sigmas = noise_levels(scheduler)
        fitted = self._match.profile(self.profile, sigmas) if fits else None
        if fitted is None:
            return None
        key = (*sigmas, start)
        if key not in self._plans:  # a run like the last one follows the same plan
            times = axis_values(fitted.axis, sigmas, is_flow(scheduler))
            self._plans = {key: compile_plan(self.policy, fitted, times, self.units, start)}
        return self._plans[key]

    def begin(self, start: int) -> None:
        """A run begins on this denoiser at step `start`, or goes on with it: others that are not called at that step,
        too, remember nothing from here on."""
        for other in self.others:
            if not other.called_at(start):
                other.free()

    def called_at(self, step: int) -> bool:
        """Whether this denoiser's last call was at that step of the run in hand."""
        return self._session.called_at(self.clock.run, step)

    def _rebind(self) -> None:
        """Follow modules that were replaced between two runs, as loading a LoRA does."""
        units = self._resolve()
        if self._layers is None or _modules(units) == _modules(self.units):
            return
        if len(network_units(units)) < len(units):
            if _members(units) == _members(self.units):
                return
            raise PolicyError(
                "blocks were replaced under a policy in which one half of guidance follows the other; leave the "
                "context and apply again"
            )
        self.units, self._plans = units, {}
        self._layers.bind(units)


class Counted(Denoiser):
    """A further denoiser that the policy has nothing for: computed at every step, counted, and told."""

    def _compare(self, network: Network) -> bool:
        return True

    def _resolve(self) -> tuple[Unit, ...]:
        return units_of(resolve_units(self.transformer, Stack()), self.name)

    def _plan(self, start: int) -> Plan | None:
        self.begin(start)
        self._session.stats.fall_back(
            f"the policy was made for `{MAIN}` and has nothing for `{self.name}`, which is computed at every step"
        )
        return None


def _members(units: tuple[Unit, ...]) -> list[tuple[int, ...]]:
    return [tuple(map(id, unit.members)) for unit in network_units(units)]


def _modules(units: tuple[Unit, ...]) -> list[tuple[int, ...]]:
    """The modules that take part, and those looked at: compiling a block takes what lies inside it out of reach."""
    entries = [unit.entry for unit in network_units(units) if isinstance(unit, BlockRun)]
    return [*_members(units), *((id(entry[0]),) for entry in entries if entry is not None)]


def denoisers_of(
    named: dict[str, nn.Module], policy: Policy, profile: str | None, clock: Clock
) -> list[Denoiser]:
    """One for each of a pipeline's denoisers, under its own part of the policy.

    A policy that is bound to a model and says nothing of a further denoiser is not for that one. Raises `PolicyError`
    where it is for denoisers that the pipeline has not.
    """
    check_denoisers(policy, named)
    fitted = has_fitted(policy.profile(profile))
    parts: list[Denoiser] = []
    for name, transformer in named.items():
        own = denoiser_policy(policy, part_name(name, named))
        further = Counted if own is None or (own is policy and fitted and parts) else Denoiser
        parts.append(further(name, transformer, own or policy, profile, clock))
    for part in parts:
        part.others = tuple(other for other in parts if other is not part)
    return parts
