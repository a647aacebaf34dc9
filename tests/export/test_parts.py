"""Where a policy's units and the architecture put the borders."""

from itertools import combinations, pairwise

import pytest
from tests.tiny import Pipeline, policy

from cachesmith.export.parts import _cut, natural_borders, part_unit, plan_parts
from cachesmith.policies import (
    Document,
    EngineError,
    Interval,
    Modules,
    Policy,
    Profile,
    Segments,
    Stack,
    preset,
)


def runs(made: Policy, pipe: Pipeline, **options: object) -> list[tuple[int, int]]:
    parts = plan_parts(made, pipe.transformer, **options)  # type: ignore[arg-type]
    return [(p.start, p.stop) for p in parts if p.module is None]


def several(*units: Stack | Segments | Modules) -> Policy:
    profiles = {f"p{i}": Profile(units=u, gate=Interval(interval=2)) for i, u in enumerate(units)}
    return Policy(Document(name="several", profiles=profiles))


def test_a_stack_is_one_segment_where_the_architecture_is(dit: Pipeline, flux: Pipeline) -> None:
    assert runs(policy(), dit) == [(0, 4)]
    assert runs(policy(), flux) == [(0, 2), (2, 4)]
    assert natural_borders(flux.transformer) == (2,)


def test_units_are_borders(dit: Pipeline) -> None:
    assert runs(policy(Segments(starts=(0, 1, 3))), dit) == [(0, 1), (1, 3), (3, 4)]


def test_one_bundle_serves_every_profile(dit: Pipeline) -> None:
    made = several(Stack(), Segments(starts=(0, 1)), Segments(starts=(0, 3)))
    assert runs(made, dit) == [(0, 1), (1, 3), (3, 4)]
    assert runs(made, dit, profiles=("p0", "p2")) == [(0, 3), (3, 4)]


def test_the_number_of_segments_can_be_asked_for(dit: Pipeline) -> None:
    assert runs(policy(), dit, segments=2) == [(0, 2), (2, 4)]
    assert runs(policy(), dit, segments=3) == [(0, 1), (1, 2), (2, 4)]
    with pytest.raises(
        EngineError, match=r"--segments 5 is not possible: .* at least 1 and there are 4 blocks"
    ):
        runs(policy(), dit, segments=5)
    with pytest.raises(EngineError, match="need at least 2"):
        runs(policy(Segments(starts=(0, 2))), dit, segments=1)


def test_an_engine_too_heavy_to_build_is_cut(dit: Pipeline) -> None:
    block = plan_parts(policy(), dit.transformer)[0].weights // 4
    assert runs(policy(), dit, limit=2.5 * block) == [(0, 2), (2, 4)]
    assert runs(policy(), dit, limit=3 * block) == [(0, 3), (3, 4)], "the fewest, not the most even"
    assert len(runs(policy(), dit, limit=1)) == 4


@pytest.mark.parametrize("limit", range(1, 12))
def test_no_cut_under_the_limit_has_fewer_runs(limit: int) -> None:
    sizes = [3, 1, 4, 1, 5, 2, 2, 1]
    cuts = [[0, *c, 8] for n in range(8) for c in combinations(range(1, 8), n)]
    valid = [c for c in cuts if all(b - a == 1 or sum(sizes[a:b]) <= limit for a, b in pairwise(c))]
    assert len(_cut([0, 8], sizes, None, limit)) == min(len(c) - 1 for c in valid)


def test_modules_are_refused_with_their_cost(dit: Pipeline) -> None:
    with pytest.raises(
        EngineError, match=r"caches the 8 modules of 4 blocks one by one.*--blockwise .* 0\.2 ms"
    ):
        plan_parts(preset("rfc"), dit.transformer)


def test_modules_block_by_block(dit: Pipeline, flux: Pipeline) -> None:
    names = [p.name for p in plan_parts(preset("rfc"), dit.transformer, blockwise=True)]
    assert names[:3] == ["block-000-attn1", "block-000-ff", "block-001-attn1"] and len(names) == 8
    # spans of FLUX's single blocks are no calls of one module
    names = [p.name for p in plan_parts(preset("rfc"), flux.transformer, blockwise=True)]
    assert len(names) == 6 and all(name.startswith(("block-000", "block-001")) for name in names)


def test_a_part_is_a_unit(flux: Pipeline) -> None:
    blocks = [*flux.transformer.transformer_blocks, *flux.transformer.single_transformer_blocks]
    for part in plan_parts(policy(), flux.transformer, segments=3):
        assert list(part_unit(flux.transformer, part).members) == blocks[part.start : part.stop]
