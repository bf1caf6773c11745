"""What the examples of properties share: `model` and `result`, as the examples of their classes make them."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _examples(doctest_namespace):
    import jmixed as jm

    model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    doctest_namespace.update(model=model, result=model.fit())
