import pytest

from cachesmith.calibrate.methods import METHODS
from cachesmith.policies import (
    PRESETS,
    Band,
    Clustered,
    Fixed,
    Hermite,
    Interval,
    Modules,
    Observed,
    Policy,
    PolicyError,
    Relational,
    Reuse,
    Scored,
    Stack,
    Taylor,
    mask,
    parse_preset,
    preset,
)
from cachesmith.policies.presets.static import MEASURED


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_bound_to_no_model(name: str) -> None:
    document = PRESETS[name]().document
    assert (document.name, list(document.profiles)) == (name, ["default"])
    assert [document.model, document.sampler, document.calibration] == [None] * 3
    assert preset(name) == parse_preset(name) == PRESETS[name]()
    assert "arXiv" in str(PRESETS[name].__doc__) or name == "uncached"


def test_presets_differ() -> None:
    assert len({PRESETS[name]().id for name in PRESETS}) == len(PRESETS)


def test_published_settings() -> None:
    fora = preset("fora").profile()
    assert (fora.units, fora.gate, fora.forecaster.rows) == (
        Modules(),
        Interval(interval=5, warmup=1),
        Reuse(),
    )
    rfc = preset("rfc").profile()
    assert rfc.gate == Relational(thresholds=(0.3,), order=2, warmup=2)
    assert (rfc.forecaster.rows, rfc.forecaster.magnitude) == (Taylor(order=2), Observed())
    assert preset("taylorseer-lite").profile().units == Stack()


def test_published_token_settings() -> None:
    toca, duca = (preset(name).profile().forecaster.refresh for name in ("toca", "duca"))
    # ToCa: 0.07 of all modules' tokens, all of them spent on MLPs; lambda_3 = 0.25 after N = 4 steps
    assert toca == Scored(ratio=2.5 * 0.07, importance="norm", age_weight=0.25 / 4, slope=0.8)
    assert duca == Scored(ratio=2.5 * 0.07, importance="random", age_weight=0.25 / 4, slope=0.8, every=2)
    clusca = preset("clusca").profile().forecaster
    assert (clusca.rows, clusca.refresh) == (Taylor(order=2), Clustered(clusters=16, blend=0.005))
    assert preset("toca", ratio=1).profile().forecaster.refresh == toca.model_copy(update={"ratio": 1.0})


def test_uncached_computes_every_step() -> None:
    gate = preset("uncached").profile().gate
    assert isinstance(gate, Interval)
    assert mask(gate, 50) == "C" * 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("taylorseer:interval=6,order=1", preset("taylorseer", interval=6, order=1)),
        (" taylorseer : interval = 6 , order = 1 ", preset("taylorseer", interval=6, order=1)),
        ("rfc:tau=0.25", preset("rfc", tau=0.25)),
        ("rfc:tau=1", preset("rfc", tau=1.0)),
        ("hicache:contraction=7e-1", preset("hicache", contraction=0.7)),
        ("ab-cache:order=3", preset("ab-cache", order=3)),
        ("fora:", preset("fora")),
        ("freqca:rows=8,columns=4", preset("freqca", rows=8, columns=4)),
    ],
)
def test_parsing(text: str, expected: Policy) -> None:
    assert parse_preset(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no preset ''; choose from uncached, fora"),
        ("hyca", "or fit a method on a model: cachesmith fit MODEL --method NAME"),
        ("svd-cache:energy=0.9", "cachesmith fit MODEL --method NAME"),
        ("taylorsear", "there is no preset 'taylorsear'; choose from .*taylorseer,"),
        ("fora:intervall=3", "has no option 'intervall'; it takes interval"),
        ("fora:name=3", "has no option 'name'"),
        ("uncached:interval=3", "it takes none"),
        ("magcache:threshold=0.1", "needs the magnitude ratios of a model, one for each step: measure them"),
        ("foca:order=2", "has no option 'order'; it takes interval, warmup"),
        ("freqca:rows=8", "grid.1 = 0: input should be greater than or equal to 1"),
        ("freqca:cutoff=1.5", "cutoff = 1.5: input should be less than or equal to 1"),
        ("fora:interval", "cannot read 'interval'"),
        ("fora:interval=3,", "cannot read ''"),
        ("fora:interval=3,interval=4", "write each option once"),
        ("fora:interval=three", "cannot read 'three' .* as a number"),
        (
            "fora:interval=0",
            "preset fora is not valid: interval = 0: input should be greater than or equal to 1",
        ),
        ("fora:interval=3.5", "interval = 3.5: input should be a valid integer"),
        ("fora:interval=" + "9" * 5000, "should be a valid integer"),
        ("taylorseer:order=5", "order = 5: input should be less than or equal to 4"),
        ("ab-cache:order=4", "order = 4: input should be 2 or 3"),
        ("hicache:contraction=0", "greater than 0"),
        ("rfc:tau=-1", "thresholds.0 = -1: input should be greater than or equal to 0$"),
        ("rfc:tau=nan", "finite number"),
        ("toca:interval=0", "preset toca is not valid: interval = 0"),
        ("toca:ratio=2", "ratio = 2: input should be less than or equal to 1"),
        ("duca:age_weight=1e309", "finite number"),
        ("clusca:clusters=100000", "less than or equal to 1024"),
    ],
)
def test_misses_say_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        parse_preset(text)


@pytest.mark.parametrize("name", sorted(METHODS.keys() - PRESETS.keys() - MEASURED.keys()))
def test_a_method_without_a_preset_says_how_it_is_made(name: str) -> None:
    with pytest.raises(PolicyError, match=r"fit a method on a model: cachesmith fit MODEL --method NAME$"):
        parse_preset(name)


def test_functions_refuse_wrong_values_alike() -> None:
    with pytest.raises(PolicyError, match="interval = 0"):
        PRESETS["taylorseer"](interval=0)


def test_magcache_is_given_its_ratios_in_python() -> None:
    policy = preset("magcache", ratios=[1.0] * 12, max_skips=3)
    assert policy.profile().gate == Fixed(mask="CFFFCFFFCFFF")
    assert (policy.profile().units, policy.profile().forecaster.rows) == (Stack(), Reuse())


def test_freqca_forecasts_what_lies_above_the_cutoff() -> None:
    forecaster = preset("freqca", cutoff=0.2).profile().forecaster
    assert (forecaster.rows, forecaster.band) == (Hermite(order=2, contraction=0.71), Band(cutoff=0.2))
