"""Standard deviations and correlations from theta, by name: as the tables of components have them."""

from types import SimpleNamespace

import numpy as np

import jmixed as jm
from jmixed.covariance.structure import factors_of_theta
from jmixed.reports.components import all_components, named_parameters, values_at


def test_values_at_theta_are_those_of_the_tables():
    casks = " + ".join(f"I((cask == {cask!r}) * 1.0)" for cask in "abc")
    words = {"groups": "batch", "re_formula": "1 + x", "vc_formula": {"cask": f"0 + {casks}"}}
    data = jm.datasets.load("pastes").assign(x=np.linspace(0, 1, 60) ** 2)
    model = jm.mixedlm("strength ~ 1", data, **words)
    rng = np.random.default_rng(0)
    theta, beta, sigma = rng.normal(size=(5, 4)), rng.normal(size=(5, 1)), np.arange(1.0, 6.0)
    values = values_at(model.spec, model.design, theta, beta, sigma)
    for k, row in enumerate(theta):
        factors = factors_of_theta(model.design.layout.terms, row)
        covariances = {t.label: sigma[k] ** 2 * f @ f.T for t, f in zip(model.spec.terms, factors, strict=True)}
        parts = all_components(model.spec, SimpleNamespace(covariances=covariances, sigma=sigma[k], rho=np.zeros(0)))
        assert [name for name, _ in named_parameters(model.spec)] == ["Intercept", *(part.name for part in parts)]
        np.testing.assert_allclose(values[k], [beta[k, 0], *(part.sdcor for part in parts)], rtol=1e-13)
