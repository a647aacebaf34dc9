"""Token-wise caching on a forecast step: what is computed after all, and what the other tokens learn from it."""

import torch
from torch import Tensor

from cachesmith.policies import Clustered, Refresh, Scored
from cachesmith.runtime.features import Feature
from cachesmith.runtime.forecast.history import History, TokenState
from cachesmith.runtime.hooks.runner import ComputeTokens
from cachesmith.runtime.models.units import Unit
from cachesmith.runtime.plan.plan import Forecast, Plan
from cachesmith.runtime.tensors import tokens


def refresh(
    plan: Plan, unit: Unit, decision: Forecast, history: History, inputs: Feature, forecast: Feature
) -> Feature | ComputeTokens:
    """Return the unit's forecast with what its tokens have learned, or what is to be computed for it."""
    rule = plan.refresh(unit)
    count = 0 if rule is None else plan.refreshed(unit, inputs[0].shape[1])
    if rule is None or not count:
        return forecast
    (now,), (plain,) = inputs, forecast
    state = history.tokens = history.tokens or _begun(rule, history, count)
    known = plain if state.shift is None else plain + state.shift
    if (decision.step - decision.sources[0] - 1) % rule.every:
        _age(rule, state)
        return (known,)
    index = _chosen(rule, state, now, history, count, seed=decision.step << 16 | unit.lane)

    def complete(computed: Feature) -> Feature:
        result = _joined(rule, state, known, index, computed[0])
        state.shift = result - plain
        _age(rule, state, index)
        if isinstance(rule, Scored) and rule.importance == "moved":
            state.reference = tokens.put(_reference(state, history), index, tokens.take(now, index))
        return (result,)

    return ComputeTokens((tokens.take(now, index),), complete, count / now.shape[1])


def _begun(rule: Refresh, history: History, count: int) -> TokenState:
    """State after a computed step, of which the first forecast makes the clusters."""
    (output,) = history.outputs[0]
    if isinstance(rule, Clustered):
        labels = tokens.cluster_tokens(output, count, rule.iterations)
        return TokenState(labels.to(torch.int16))
    return TokenState(torch.zeros(output.shape[:2], dtype=torch.int16, device=output.device))


def _chosen(rule: Refresh, state: TokenState, now: Tensor, history: History, count: int, seed: int) -> Tensor:
    if isinstance(rule, Clustered):
        return tokens.best_of_each(_random(now, seed), state.marks, count)
    score = _importance(rule, state, now, history, seed)
    return tokens.best(score + rule.age_weight * state.marks, count)


def _importance(rule: Scored, state: TokenState, now: Tensor, history: History, seed: int) -> Tensor | float:
    match rule.importance:
        case "norm":
            return tokens.token_score(now)
        case "moved":
            return tokens.token_score(now - _reference(state, history))
        case "random":
            return _random(now, seed)
        case "none":
            return 0.0


def _random(now: Tensor, seed: int) -> Tensor:
    return tokens.random_score(now.shape[1], seed, now.device)


def _joined(rule: Refresh, state: TokenState, known: Tensor, index: Tensor, values: Tensor) -> Tensor:
    if isinstance(rule, Clustered) and rule.blend:
        known = tokens.spread(known, values, state.marks.long(), rule.blend)
    return tokens.put(known, index, values)


def _age(rule: Refresh, state: TokenState, index: Tensor | None = None) -> None:
    if isinstance(rule, Clustered):
        return
    state.marks = state.marks + 1
    if index is not None:
        state.marks = state.marks.scatter(1, index, 0)


def _reference(state: TokenState, history: History) -> Tensor:
    return history.inputs[0][0] if state.reference is None else state.reference
