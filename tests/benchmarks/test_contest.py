"""Other tools' caches on tiny pipelines: counted alike, and gone without a trace afterwards."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experts import tiny_wan
from tests.pipelines.image import qwen, qwen_asked
from tests.pipelines.parts import TinyPipeline, transformer
from tests.tiny import tiny_dit, tiny_flux
from tests.tiny_folder import open_tiny, save_tiny

from cachesmith.calibrate.methods import METHODS
from cachesmith.policies import Fixed, Forecaster, Modules, Policy, Profile, Stack, Taylor, preset, unbound
from cachesmith.policies.document import Document
from cachesmith.policies.schedule import even
from cachesmith.runtime.models.denoisers import denoisers
from cachesmith.sampling.metrics import relative_error
from cachesmith.sampling.render import Renderer
from cachesmith.sampling.requests import Request

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from contest import controls, of_cache_dit, of_diffusers, ours, samplers
from contest.contestant import Contestant, Course, Dial, Enter, Entry, named, nothing
from contest.journal import Journal
from contest.race import Race, Result, first_sentence
from contest.tables import best, report
from contest.yardstick import play, tensor_bytes

STEPS = 12
needs_cache_dit = pytest.mark.skipif(find_spec("cache_dit") is None, reason="pip install 'cachesmith[bench]'")
pytestmark = [
    needs_cache_dit,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def embedded(seed: int) -> Request:
    text = torch.Generator().manual_seed(100)
    embeds = {"prompt_embeds": torch.randn(1, 3, 32, generator=text)}
    embeds["pooled_prompt_embeds"] = torch.randn(1, 32, generator=text)
    return Request({**embeds, "height": 16, "width": 16}, seed)


def dit_course(pipe: Any = None) -> Course:
    requests = tuple(Request({"class_labels": 1 + i}, i) for i in range(2))
    return Course(Renderer(pipe or tiny_dit(), STEPS, guidance_scale=1.5), requests, requests, (6,))


class One(Renderer):
    """Flux takes embeddings of one sample as they are."""

    def _arguments(self, chunk: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(chunk[0].seed)
        plain = dict(chunk[0].arguments)
        return {**plain, "generator": generator, "num_inference_steps": self.steps, "output_type": "pt"}


def flux_course() -> Course:
    requests = (embedded(0),)
    return Course(One(tiny_flux(), STEPS, batch=1), requests, requests, (6,))


def qwen_course() -> Course:
    """Guided by a second call a step."""
    tiny = TinyPipeline(qwen("QwenImagePipeline"), qwen_asked())
    pipe, requests = tiny.pipe(), tuple(Request(tiny.request(i), i) for i in range(2))
    pipe.transformer = transformer(
        "QwenImageTransformer2DModel", in_channels=16, out_channels=4, num_layers=4
    ).eval()
    return Course(Renderer(pipe, STEPS), requests, requests, (6,))


def wan_course() -> Course:
    text = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(5))
    embeds = {"prompt_embeds": text, "negative_prompt_embeds": -text, "guidance_scale": 4.0}
    requests = (Request({**embeds, "height": 16, "width": 16, "num_frames": 5}, 0),)
    return Course(One(tiny_wan(), STEPS, batch=1), requests, requests, (6,))


COURSES: dict[str, Callable[[], Course]] = {
    "dit": dit_course,
    "flux": flux_course,
    "qwen": qwen_course,
    "wan": wan_course,
}


@pytest.fixture(params=COURSES)
def course(request: pytest.FixtureRequest) -> Course:
    return COURSES[request.param]()


def entered(course: Course) -> Iterator[Contestant]:
    """One setting of every method of the other tools."""
    seen: set[str] = set()
    for module in (samplers, of_diffusers, of_cache_dit):
        for entry in module.entries(course):
            if entry.method not in seen:
                seen.add(entry.method)
                yield entry.at(0.2) if isinstance(entry, Dial) else entry


UNCACHED = Contestant("uncached", "uncached", "uncached", nothing)


def _modules(course: Course) -> Iterator[tuple[str, torch.nn.Module]]:
    for part, network in denoisers(course.renderer.pipe).items():
        yield from network.named_modules(prefix=part)


def test_every_other_tool_leaves_the_pipeline_as_it_was(course: Course) -> None:
    before, meter = play(course.renderer, UNCACHED, course.requests)
    attributes = {name: set(vars(m)) for name, m in _modules(course)}
    names = []
    for contestant in entered(course):
        play(course.renderer, contestant, course.requests)
        after, again = play(course.renderer, UNCACHED, course.requests)
        assert torch.equal(before.latents, after.latents), contestant.name
        assert again.work == meter.work
        assert {n: set(vars(m)) for n, m in _modules(course)} == attributes
        names.append(contestant.method)
    assert len(names) >= 10


def nfc(course: Course, enter: Enter) -> float:
    _, meter = play(course.renderer, Contestant("", "", "", enter), course.requests)
    _, whole = play(course.renderer, UNCACHED, course.requests)
    return meter.work / whole.work * course.steps


def test_work_is_block_executions(course: Course) -> None:
    assert nfc(course, ours.applied(lambda: preset("taylorseer-lite", interval=5, order=1))) == pytest.approx(
        4
    )
    fewer = next(c for c in samplers.entries(course) if c.name.endswith("8 steps"))
    assert nfc(course, fewer.enter) == pytest.approx(8)


def test_work_of_modules_is_what_the_runtime_counts() -> None:
    course = dit_course()
    fora = Contestant("", "", "", ours.applied(lambda: preset("fora", interval=4)))
    _, meter = play(course.renderer, fora, course.requests)
    assert meter.nfc == nfc(course, fora.enter) == pytest.approx(3)


def test_first_block_cache_counts_the_block_it_always_computes() -> None:
    course = dit_course()
    assert nfc(course, of_diffusers._first_block(1e9)) == pytest.approx(1 + (STEPS - 1) / 4)
    assert nfc(
        course, of_cache_dit.cached(course, 0, 1, residual_diff_threshold=1e9, max_warmup_steps=1)
    ) == (pytest.approx(1 + (STEPS - 1) / 4))


def test_a_layer_that_a_tool_has_skipped_is_no_work(course: Course) -> None:
    theirs = next(
        e for e in of_diffusers.entries(course) if e.name == "diffusers TaylorSeer interval=3 order=1"
    )
    assert isinstance(theirs, Contestant) and nfc(course, theirs.enter) == sum(
        "CCFCFFCFFCFF"[:steps].count("C") for steps in course.steps_by_denoiser.values()
    )


def test_the_share_of_a_cached_step_is_measured(course: Course) -> None:
    """The first of four blocks, in one list or two, or of two in each expert."""
    blocks = 2 if "transformer_2" in course.steps_by_denoiser else 4
    assert of_cache_dit.cached_share(course) == pytest.approx(1 / blocks)


def test_masks_are_shared_out_to_the_denoisers() -> None:
    steps = {"transformer": 6, "transformer_2": 6}
    assert wan_course().steps_by_denoiser == steps
    assert of_cache_dit.even_masks(5, steps) == {
        "transformer": [1, 0, 0, 1, 0, 0], "transformer_2": [1, 0, 1, 0, 1, 0],
    }  # fmt: skip
    assert of_cache_dit.even_masks(2, steps, first=2) == {name: [1, 0, 0, 0, 0, 0] for name in steps}


def test_fewer_steps_have_the_noise_levels_of_the_pipeline() -> None:
    """A shift of 3 is called `flow_shift` by the sampler of Wan, and `shift` by Heun's."""
    course, middles = wan_course(), {}
    for entry in samplers.entries(course):
        with entry.enter(course.renderer):
            scheduler = course.renderer.pipe.scheduler
            scheduler.set_timesteps(8)
            middles[entry.method] = float(scheduler.sigmas[len(scheduler.sigmas) // 2])
    assert middles.keys() == {"UniPC", "DPM-Solver++ 2M", "flow Heun"}
    assert all(0.65 < middle < 0.8 for middle in middles.values()), middles


def test_diffusers_taylorseer_is_ours_on_the_same_schedule() -> None:
    course = dit_course()
    theirs = next(
        e for e in of_diffusers.entries(course) if e.name == "diffusers TaylorSeer interval=3 order=1"
    )
    assert isinstance(theirs, Contestant)
    profile = Profile(
        units=Modules(), gate=Fixed(mask="CCFCFFCFFCFF"), forecaster=Forecaster(rows=Taylor(order=1))
    )
    same = ours.applied(lambda: Policy(Document(name="same", profiles={"default": profile})))
    first, work = play(course.renderer, theirs, course.requests)
    second, ours_work = play(course.renderer, Contestant("", "", "", same), course.requests)
    assert work.work == ours_work.work
    assert float(relative_error(first.latents, second.latents).max()) < 1e-4


def test_mag_cache_is_calibrated_on_the_tuning_requests() -> None:
    ratios = of_diffusers.magnitude_ratios(dit_course())
    assert len(ratios["transformer"]) == STEPS and ratios["transformer"][0] == 1.0
    assert all(0.1 < ratio < 10 for ratio in ratios["transformer"])
    assert {name: len(found) for name, found in of_diffusers.magnitude_ratios(wan_course()).items()} == {
        "transformer": 6, "transformer_2": 6,
    }  # fmt: skip


def race(course: Course, folder: Path) -> Race:
    return Race(course, Journal(folder / "peers.jsonl", {"steps": course.steps}))


def test_a_race_is_resumed_and_reports_failures(tmp_path: Path) -> None:
    course = dit_course(open_tiny(save_tiny(tmp_path)))

    def broken(renderer: Renderer) -> Any:
        raise ValueError("It does not fit. Really not.")

    entries: list[Entry] = [
        Contestant("fora 4", ours.FAMILY, "fora", ours.applied(lambda: preset("fora", interval=4))),
        Contestant("broken", "other", "broken", broken),
        next(e for e in ours.entries(course) if isinstance(e, Dial) and e.method == "rfc"),
    ]
    first = race(course, tmp_path).run(entries, lambda _: None)
    lines = (tmp_path / "peers.jsonl").read_text()
    assert race(course, tmp_path).run(entries, lambda _: None) == first
    assert (tmp_path / "peers.jsonl").read_text() == lines
    by_name = {result.method: result for result in first}
    assert by_name["broken"].error == "ValueError: It does not fit"
    assert by_name["rfc"].nfc <= 6.3
    assert by_name["uncached"].psnr == 100.0
    text = report(first, course.budgets, "")
    assert "| other | broken | ValueError: It does not fit |" in text and "fora 4" in text


def test_a_setting_is_found_again_by_its_name(tmp_path: Path) -> None:
    course = dit_course(open_tiny(save_tiny(tmp_path)))
    entries = list(ours.entries(course))
    dial = next(e for e in entries if isinstance(e, Dial) and e.method == "rfc")
    plain = next(e for e in entries if isinstance(e, Contestant))
    for name in (plain.name, dial.at(0.3162).name):
        found = named(entries, name)
        assert found is not None and found.name == name
    assert named(entries, "fora interval=5000") is None
    assert named(entries, dial.name.format("often")) is None


def test_times_are_taken_in_turns_for_what_the_tables_show(tmp_path: Path) -> None:
    course = dit_course(open_tiny(save_tiny(tmp_path)))
    fora = Contestant("fora 4", ours.FAMILY, "fora", ours.applied(lambda: preset("fora", interval=4)))
    run = race(course, tmp_path)
    results = run.run([fora], lambda _: None)
    told: list[str] = []
    timed = run.time(results, {"uncached", *(r.name for r in best(results, 6))}, 2, told.append)
    assert told == ["1: uncached", "1: fora 4", "2: uncached", "2: fora 4"]
    assert all(result.seconds for result in timed)


def test_fitting_on_entry_is_no_work_of_the_method() -> None:
    course = dit_course()

    def fitted(renderer: Renderer) -> Any:
        renderer(course.tuning)
        return nothing(renderer)

    _, plain = play(course.renderer, Contestant("plain", "a", "a", nothing), course.requests)
    _, meter = play(course.renderer, Contestant("fitted", "a", "a", fitted), course.requests)
    assert meter.work == plain.work > 0


def test_work_is_told_in_steps_of_the_same_requests(tmp_path: Path) -> None:
    """Prompts of another length, which are all that is screened, cost another step."""
    course, short = flux_course(), embedded(0)
    longer = {"prompt_embeds": short.arguments["prompt_embeds"].repeat(1, 9, 1)}
    both = replace(course, requests=(short, Request({**short.arguments, **longer}, 1)), screened=1)
    (uncached,) = race(both, tmp_path).run([], lambda _: None)
    assert uncached.samples == 1 and uncached.nfc == pytest.approx(STEPS)


def test_a_lead_counts_at_no_more_time() -> None:
    dear, cheap = (
        Result(f"calibrated {n}", ours.CALIBRATED, ours.CALIBRATED, nfc=n, psnr=40.0 + n, seconds=n)
        for n in (6.0, 5.0)
    )
    rivals = [
        Result(f"of {s}", f"other {s}", f"of {s}", nfc=6.0, psnr=30.0, seconds=s) for s in (6.5, 5.5, 4.5)
    ]
    table = report([dear, cheap, *rivals], (6,), "").split("## ")[1]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if "other" in line]
    assert [row[-3:-1] for row in rows] == [["+16.00", "+16.00"], ["+16.00", "+15.00"], ["+16.00", "-"]]


def test_the_best_are_measured_on_all_requests(tmp_path: Path) -> None:
    course = replace(dit_course(open_tiny(save_tiny(tmp_path))), screened=1)
    made = {n: ours.applied(partial(preset, "fora", interval=n)) for n in (3, 4, 6)}
    entered = [Contestant(f"fora {n}", ours.FAMILY, "fora", enter) for n, enter in made.items()]
    run = race(course, tmp_path)
    screened = run.run(entered, lambda _: None)
    assert {r.samples for r in screened} == {1}

    def pick(results: list[Result]) -> set[str]:
        """As a table whose best setting changes once the first was measured again."""
        return {"fora 3"} if all(r.samples == 1 for r in results) else {"fora 3", "fora 4"}

    confirmed = {r.name: r for r in run.confirm(screened, pick, lambda _: None)}
    full = len(course.requests)
    assert full > 1 and [confirmed[f"fora {n}"].samples for n in (3, 4, 6)] == [full, full, 1]
    alone = Race(replace(course, screened=None), Journal(tmp_path / "alone.jsonl", {})).run(
        entered, lambda _: None
    )
    assert confirmed["fora 3"] == next(r for r in alone if r.name == "fora 3")


def test_other_conditions_are_refused(tmp_path: Path) -> None:
    Journal(tmp_path / "j.jsonl", {"steps": 1})
    with pytest.raises(Exception, match="other conditions"):
        Journal(tmp_path / "j.jsonl", {"steps": 2})


def test_bytes_count_each_storage_once() -> None:
    tensor = torch.zeros(8)
    assert tensor_bytes({"a": [tensor, tensor[:2]]}, (torch.zeros(2),)) == 40


def test_presets_and_methods_enter_by_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(renderer: Renderer, requests: Any, *, budget: int = 5, threshold: float = 0.1) -> Policy:
        assert requests
        return preset("fora", interval=12 // budget)

    monkeypatch.setitem(METHODS, "made-up", fit)
    course = dit_course()
    found = {entry.name: entry for entry in ours.entries(course)}
    assert {"fora interval=2", "taylorseer order=1 interval=3", "rfc order=2 tau={}"} <= found.keys()
    assert "uncached" not in found
    fitted = found["made-up (fitted) budget=6"]
    assert isinstance(fitted, Contestant) and nfc(course, fitted.enter) == pytest.approx(6)


def test_what_was_fitted_is_not_fitted_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not in another process either: a search takes long, and it is entered twice, screened and confirmed."""
    fits: list[int] = []

    def fit(renderer: Renderer, requests: Any, *, budget: int = 5) -> Policy:
        fits.append(budget)
        return preset("fora", interval=12 // budget)

    monkeypatch.setitem(METHODS, "made-up", fit)
    course = replace(dit_course(), kept=tmp_path / "kept")
    for _ in range(2):
        (found,) = (e for e in ours.entries(course) if e.method == "made-up (fitted)")
        assert isinstance(found, Contestant) and nfc(course, found.enter) == pytest.approx(6)
    assert fits == [6]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["made-up budget=6.policy.safetensors"]


def test_intervals_follow_from_budgets() -> None:
    assert ours.intervals(50, (8, 10, 14), warmup=2) == (7, 6, 4)
    assert ours.intervals(50, (8, 10, 14), warmup=1) == (7, 5, 4)
    assert first_sentence(KeyError("x")) == "KeyError: 'x'"
    assert of_cache_dit.even_mask(4, 12) == [1, 0, 0] * 4
    assert of_cache_dit.even_mask(4, 13, first=2) == [1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]


def test_controls_have_the_policys_ends() -> None:
    gate = Fixed(mask="CCFFCFFFFCFF")
    policy = unbound(Profile(units=Stack(), gate=gate, forecaster=Forecaster(rows=Taylor(order=1))))
    course = replace(dit_course(), policy=policy)
    found = list(controls.entries(course))
    assert [entry.name for entry in found] == [
        "uniform, 4 steps from 0 to 9, reuse",
        "uniform, 4 steps from 0 to 9, line",
    ]
    assert even(12, 0, 9, 4) == "CFFCFFCFFCFF"
    assert nfc(course, found[0].enter) == pytest.approx(4)
    unbounded = next(controls.entries(dit_course()))
    assert unbounded.name == "uniform, 6 steps from 0 to 11, reuse"
