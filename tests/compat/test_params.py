"""Parameter vectors and objects: layouts, their derivatives, and what they refuse."""

import jax
import numpy as np
import pytest
from statsmodels.regression.mixed_linear_model import MixedLMParams as TheirParams

import jmixed as jm
from jmixed.compat.packing import Packing, psd_cholesky
from jmixed.compat.params import as_array
from jmixed.covariance.identity import Identity
from jmixed.covariance.unstructured import Unstructured

PACKING = Packing((Unstructured(3), Identity(2), Unstructured(1)), (False, True, True))


def random_theta(seed):
    return np.random.default_rng(seed).normal(size=PACKING.size)


def components(seed=0, k_re=2, k_vc=2):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(k_re, k_re))
    return {"fe_params": rng.normal(size=3), "cov_re": root @ root.T, "vcomp": rng.uniform(size=k_vc)}


@pytest.mark.parametrize("use_sqrt", [False, True])
@pytest.mark.parametrize("has_fe", [False, True])
@pytest.mark.parametrize(("k_re", "k_vc"), [(2, 2), (0, 1), (1, 0), (3, 0)])
def test_packed_layout_is_that_of_statsmodels(use_sqrt, has_fe, k_re, k_vc):
    parts = components(1, k_re, k_vc)
    ours, theirs = jm.MixedLMParams.from_components(**parts), TheirParams.from_components(**parts)
    packed = ours.get_packed(use_sqrt=use_sqrt, has_fe=has_fe)
    np.testing.assert_allclose(packed, theirs.get_packed(use_sqrt=use_sqrt, has_fe=has_fe), rtol=1e-12)
    back = jm.MixedLMParams.from_packed(packed, 3, k_re, use_sqrt, has_fe)
    np.testing.assert_allclose(back.cov_re, parts["cov_re"], atol=1e-12)
    np.testing.assert_allclose(back.vcomp, parts["vcomp"], rtol=1e-12)
    np.testing.assert_allclose(back.fe_params, parts["fe_params"] if has_fe else np.zeros(3))
    assert (back.k_fe, back.k_re, back.k_vc, back.k_tot) == (3, k_re, k_vc, 3 + back.k_re2 + k_vc)


def test_copy_is_independent():
    params = jm.MixedLMParams.from_components(**components())
    other = params.copy()
    other.cov_re[0, 0], other.vcomp[0], other.fe_params[0] = 99, 99, 99
    assert 99 not in (params.cov_re[0, 0], params.vcomp[0], params.fe_params[0])


def test_components_from_a_square_root():
    root = np.array([[2.0, 0.0], [1.0, 3.0]])
    np.testing.assert_allclose(jm.MixedLMParams.from_components(cov_re_sqrt=root).cov_re, root @ root.T)


def test_singular_covariance_keeps_its_covariances():
    # statsmodels drops them: its factor falls back to the diagonal.
    singular = np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    packed = jm.MixedLMParams.from_components(cov_re=singular).get_packed(use_sqrt=True)
    back = jm.MixedLMParams.from_packed(packed, 0, 3, use_sqrt=True, has_fe=False)
    np.testing.assert_allclose(back.cov_re, singular)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_indefinite_covariance_is_refused_at_any_scale(scale):
    with pytest.raises(jm.ModelError, match="not positive semidefinite"):
        psd_cholesky(scale * np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(jm.ModelError, match="not positive semidefinite"):
        psd_cholesky(scale * np.array([[0.0, 1.0], [1.0, 1.0]]))


def test_factor_of_very_different_scales():
    spread = np.diag([1e6, 1.0, 1e-6])
    covariance = spread @ np.array([[1, 0.5, 0.2], [0.5, 1, 0.3], [0.2, 0.3, 1]]) @ spread
    np.testing.assert_allclose(psd_cholesky(covariance), np.linalg.cholesky(covariance), rtol=1e-10)


def test_negative_variance_is_refused():
    with pytest.raises(jm.ModelError, match="negative variance, -0.5"):
        jm.MixedLMParams.from_components(vcomp=[-0.5]).get_packed(use_sqrt=True)


def test_short_vectors_are_refused():
    with pytest.raises(jm.DataError, match="shape .2,., but 1 fixed effects and 3"):
        jm.MixedLMParams.from_packed([1.0, 2.0], 1, 2, use_sqrt=False, has_fe=True)


def test_shapes_of_components_are_checked():
    with pytest.raises(jm.DataError, match="square matrix"):
        jm.MixedLMParams.from_components(cov_re=np.ones((2, 3)))


def test_text_and_tracers_are_refused():
    with pytest.raises(jm.DataError, match="must hold numbers"):
        as_array(["a"], "params")
    with pytest.raises(jm.DataError, match=r"jm\.estimate"):
        jax.jit(lambda x: as_array(x, "params").sum())(np.ones(2))


def test_layouts_of_a_model_lead_back():
    theta = PACKING.theta(PACKING.psi(random_theta(0)))
    np.testing.assert_allclose(PACKING.theta_of_root(PACKING.root(theta)), theta)
    psi = PACKING.psi(theta)
    cov_re, vcomp = PACKING.unpack(psi)
    assert (cov_re.shape, vcomp.shape) == ((3, 3), (2,))
    np.testing.assert_allclose(PACKING.pack(cov_re, vcomp), psi)
    np.testing.assert_allclose(PACKING.theta(psi), theta)


def test_theta_reads_factors_down_their_columns():
    packing, root = Packing((Unstructured(3),), (False,)), np.array([11, 21, 22, 31, 32, 33.0])
    np.testing.assert_array_equal(packing.theta_of_root(root), [11, 21, 31, 22, 32, 33])
    np.testing.assert_array_equal(packing.root(packing.theta_of_root(root)), root)


def test_pack_names_the_shapes():
    with pytest.raises(jm.DataError, match=r"start has cov_re of shape \(2, 2\).*\(3, 3\) and \(2,\)"):
        PACKING.pack(np.eye(2), np.ones(2), "start")


def test_blocks_of_several_terms():
    packing = Packing((Unstructured(2), Unstructured(1)), (False, False))
    psi = np.array([4.0, 1.0, 3.0, 5.0])
    cov_re, _ = packing.unpack(psi)
    np.testing.assert_array_equal(cov_re, [[4, 1, 0], [1, 3, 0], [0, 0, 5]])
    np.testing.assert_array_equal(packing.pack(cov_re, np.zeros(0)), psi)


def test_derivatives_through_theta_are_exact():
    rng = np.random.default_rng(3)
    linear, quadratic = rng.normal(size=PACKING.size), rng.normal(size=(PACKING.size,) * 2)
    quadratic = quadratic + quadratic.T

    def value(theta):
        psi = PACKING.psi(theta)
        return linear @ psi + psi @ quadratic @ psi / 2

    def slope(theta):
        return (linear + quadratic @ PACKING.psi(theta)) @ PACKING.jacobian(theta)

    theta, steps = random_theta(4), 1e-5 * np.eye(PACKING.size)
    numeric = [(value(theta + h) - value(theta - h)) / 2e-5 for h in steps]
    np.testing.assert_allclose(slope(theta), numeric, rtol=1e-6, atol=1e-6)
    gradient = linear + quadratic @ PACKING.psi(theta)
    numeric = [(slope(theta + h) - slope(theta - h)) / 2e-5 for h in steps]
    np.testing.assert_allclose(PACKING.hessian(theta, gradient, quadratic), numeric, rtol=1e-6, atol=1e-5)


def test_what_can_be_held():
    packing = Packing((Unstructured(3),), (False,))
    start = packing.identity()

    def mask(*held):
        pattern = np.ones((3, 3))
        for i, j in held:
            pattern[i, j] = pattern[j, i] = 0
        return packing.theta_of_root(packing.pack(pattern, np.zeros(0)) != 0)

    packing.check_held(mask((0, 0)), start)
    packing.check_held(mask((1, 0), (2, 0), (2, 1)), start)
    packing.check_held(mask((1, 0), (2, 0)), start)
    for pattern in (mask((1, 1)), mask((2, 1))):
        with pytest.raises(jm.ModelError, match="put what is held first"):
            packing.check_held(pattern, start)
    correlated = packing.theta(packing.pack(np.eye(3) + 0.5, np.zeros(0)))
    with pytest.raises(jm.ModelError, match="start it at zero"):
        packing.check_held(mask((1, 0)), correlated)


def test_vcspec_holds_what_it_is_given():
    spec = jm.VCSpec(["a"], [[["x"]]], [[np.ones((2, 1))]])
    assert (spec.names, spec.colnames) == (["a"], [[["x"]]])
