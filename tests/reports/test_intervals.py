"""Tables of intervals and profiles: names, levels, choices, and what is refused."""

import functools
import pickle

import numpy as np
import pandas as pd
import pytest
from references import beside

import jmixed as jm

SLEEP = jm.datasets.load("sleepstudy")
NAMES = ["Intercept", "Days", "sd_Intercept|Subject", "cor_Days.Intercept|Subject", "sd_Days|Subject", "sigma"]


@functools.cache
def fitted(reml=True):
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", SLEEP).fit(reml=reml)


class TestConfint:
    @pytest.mark.parametrize("method", ["wald", "profile"])
    def test_layout(self, method):
        table = fitted().confint(method)
        assert table.index.tolist() == NAMES
        assert table.columns.tolist()[:2] == ["lower", "upper"]
        some = fitted().confint(method, which=["sigma", "Days"])
        assert some.index.tolist() == ["sigma", "Days"]
        np.testing.assert_allclose(some, table.loc[["sigma", "Days"]], rtol=1e-9)
        assert fitted().confint(method, which="Days").shape == (1, 2)

    def test_says_that_the_profile_is_by_ml(self):
        assert "ML deviance; the fit was by REML" in repr(fitted().confint("profile"))
        assert "ML deviance; the fit was by REML" in fitted().confint("profile")._repr_html_()
        assert "REML" not in repr(fitted(reml=False).confint("profile"))
        pd.testing.assert_frame_equal(
            pd.DataFrame(fitted().confint("profile")),
            fitted(reml=False).confint("profile"),
            rtol=1e-7,
            check_frame_type=False,
        )

    def test_profile_at_another_level(self):
        profile = fitted().profile(level=0.9, steps=2)
        for level in (0.5, 0.9, 0.99):
            direct = fitted().confint("profile", level)
            np.testing.assert_allclose(profile.confint(level), direct, rtol=1e-7)
        assert np.all(np.diff(profile.table.loc[profile.table.parameter == "sigma", "zeta"]) > 0.04)

    def test_profile_object(self):
        profile = pickle.loads(pickle.dumps(fitted().profile(["sigma", "Days"])))
        assert profile.estimates.index.tolist() == ["sigma", "Days"]
        np.testing.assert_allclose(profile.estimates["Days"], fitted(reml=False).fe_params["Days"], rtol=1e-6)
        assert profile.table.columns.tolist() == ["parameter", "value", "zeta", "slope", *NAMES]
        assert "constrained fits of 2 parameters" in repr(profile)

    def test_identity_terms_have_one_standard_deviation(self):
        """A block of indicators with one variance is a nested factor, whose limits are known."""
        casks = " + ".join(f"I((cask == {cask!r}) * 1.0)" for cask in "abc")
        words = {"groups": "batch", "re_formula": "1", "vc_formula": {"cask": f"0 + {casks}"}}
        result = jm.mixedlm("strength ~ 1", jm.datasets.load("pastes"), **words).fit()
        assert result.model.spec.terms[1].structure == "identity"
        known = [[row["lower"], row["upper"]] for row in beside("profile_ci")["pastes_reml"]]
        np.testing.assert_allclose(result.confint("profile").iloc[[0, 2, 1, 3]], known, atol=1e-6)

    def test_progress(self, capsys):
        fitted().confint("profile", progress=True)
        assert "12" in capsys.readouterr().err
        fitted().profile()
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("level", [0, 1, 95, -0.5, np.nan, "0.95", True])
    def test_bad_levels(self, level):
        for call in (fitted().confint, fitted().profile):
            with pytest.raises(jm.ModelError, match="level is .*between 0 and 1"):
                call(level=level)

    def test_refusals(self):
        result = fitted()
        with pytest.raises(jm.ModelError, match="method='boot'"):
            result.confint("boot")
        with pytest.raises(jm.ModelError, match=r"no parameter \['days'\]; the parameters are \['Intercept'"):
            result.confint(which="days")
        with pytest.raises(jm.ModelError, match="no parameter"):
            result.profile(which=[])
        for steps in (-1, 2.5, True):
            with pytest.raises(jm.ModelError, match="steps is"):
                result.profile(steps=steps)
        model = jm.mixedlm("Reaction ~ Days", SLEEP, groups="Subject", re_formula="~Days")
        held = model.fit(free=jm.MixedLMParams.from_components(np.ones(2), cov_re=np.eye(2)))
        with pytest.raises(jm.ModelError, match="held"):
            held.confint("profile")
