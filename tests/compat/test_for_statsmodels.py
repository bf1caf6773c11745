"""Fixed effects for packages that know statsmodels' results."""

import numpy as np
import pytest

import jmixed as jm


def test_summary_col_prints_them():
    summary2 = pytest.importorskip("statsmodels.iolib.summary2")
    result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
    given = result.to_statsmodels()
    tested = result.test()
    np.testing.assert_allclose(given.pvalues, tested["p"])
    limits = result.summary(ddf="satterthwaite").tables[1].loc["Days"].tolist()[-2:]
    np.testing.assert_allclose(given.conf_int().loc["Days"], [float(limit) for limit in limits], atol=1e-3)
    text = str(summary2.summary_col([given], stars=True, include_r2=True))
    assert "10.4673***" in text
    assert f"{result.r2().conditional:.4f}" in text
