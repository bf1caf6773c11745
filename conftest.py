"""What the examples of attributes share: `model` and `result`, as the example of `MixedLMResults` makes them."""

import pytest


@pytest.fixture(autouse=True)
def _examples(request, doctest_namespace):
    if not isinstance(request.node, pytest.DoctestItem) or doctest_namespace:
        return
    import jmixed as jm

    model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    doctest_namespace.update(model=model, result=model.fit())
