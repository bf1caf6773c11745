"""What the examples of attributes share: `model`, `result` and `slow`, as the classes of results make them."""

import os

import pytest

# Two workers share the processors already: NumPy's threads would wait for one another, for ten times as long.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _examples(request, doctest_namespace):
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import jmixed as jm

    if not doctest_namespace:
        model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        doctest_namespace.update(model=model, result=model.fit())
    if "slow." in request.node.dtest.docstring and "slow" not in doctest_namespace:
        sleep = jm.datasets.load("sleepstudy")
        sleep["slow"] = sleep["Reaction"] > 300
        slow = jm.mixedglm("slow ~ Days + (1 | Subject)", sleep, family="binomial").fit()
        doctest_namespace["slow"] = slow
