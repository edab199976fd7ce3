"""The sweep of learning rates: the rates of each job, the best of each system, and the table by hand."""

import pytest
import tiny

from selfparam_jax.jobs.settings import read_settings

learning_rates = tiny.benchmark("learning_rates")


@pytest.fixture
def flags(monkeypatch, tmp_path):
    """A function that sets the command line's flags."""

    def given(**values):
        for name, value in values.items():
            monkeypatch.setattr(learning_rates, name, type("Flag", (), {"value": value}))

    given(OUT=str(tmp_path), MODEL="m", CONTEXTS="examples:1", CHOSEN=["ft_c", "cartridge"], FACTORS=["0.5", "1"])
    return given


def found(rate, f1, after=20.0, before=16.0):
    return {"rate": rate, "f1": f1, "perplexity_before": before, "perplexity_after": after, "kl": 0.1}


def test_all_rates_have_the_same_factor(flags):
    settings = read_settings(learning_rates.config_of("0.5"))
    assert settings.train.learning_rate == 0.002 == settings.baselines.ft_c.learning_rate
    assert settings.baselines.cartridge.learning_rate == 0.01  # half of its own default
    assert settings.baselines.ft_s.learning_rate == 0.0  # not asked for
    assert settings.systems == ("ft_c", "cartridge") and settings.contexts == "examples:1"
    flags(CHOSEN=["bm25"])
    with pytest.raises(ValueError, match=r"bm25, which has no setting baselines.bm25.learning_rate"):
        learning_rates.measure_all()


def test_the_best_has_not_ruined_the_model():
    rows = [{"systems": {"ft_c": each}} for each in (found(1, 0.5), found(2, 0.7), found(3, 0.7), found(4, 0.9, 33))]
    assert learning_rates.best_rate(rows, "ft_c") == 2
    assert learning_rates.best_rate(rows[3:], "ft_c") is None
    unmeasured = {"systems": {"ft_c": found(5, 0.8, None, None)}}
    assert learning_rates.best_rate([*rows, unmeasured], "ft_c") == 5


def test_a_job_for_each_factor_and_the_table(flags, monkeypatch, tmp_path, capsys):
    asked = []

    def run_job(config, workdir):
        asked.append((workdir.name, config.train.learning_rate))
        good = workdir.name == "0.5"
        names = ("injected", "ft_c", "cartridge")
        drift = {"perplexity_before": 16.0, "perplexity_after": 20.0 if good else 40.0, "kl": 0.1}
        return {
            "scores": {name: {"f1": 0.25 if good else 0.75} for name in names},
            "measured": {name: {"drift": drift if name != "injected" else drift | {"perplexity_after": 17.0}}
                         for name in names},
        }  # fmt: skip

    monkeypatch.setattr(learning_rates, "run_job", run_job)
    learning_rates.measure_all()
    assert asked == [("0.5", 0.002), ("1", 0.004)]
    table = (tmp_path / "learning_rates.md").read_text()
    assert table.splitlines()[2:] == [
        "| injected | 0.002 | 0.250 | 16.00 | 17.00 |  |",
        "| injected | 0.004 | 0.750 | 16.00 | 17.00 | best |",
        "| ft_c | 0.002 | 0.250 | 16.00 | 20.00 | best |",
        "| ft_c | 0.004 | 0.750 | 16.00 | 40.00 | collapsed |",
        "| cartridge | 0.01 | 0.250 | 16.00 | 20.00 | best |",
        "| cartridge | 0.02 | 0.750 | 16.00 | 40.00 | collapsed |",
        "",
        "    --config.train.learning_rate=0.004",
        "    --config.baselines.ft_c.learning_rate=0.002",
        "    --config.baselines.cartridge.learning_rate=0.01",
    ]
    assert capsys.readouterr().out == table + "\n"
