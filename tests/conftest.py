"""What holds for the whole suite: strict JAX, compiled programs kept between runs, the same examples each time."""

import gc
import os
import zlib
from pathlib import Path

import hypothesis
import jax
import pytest


def pytest_configure(config):
    """Set JAX up before any test module is imported.

    Strict promotion makes every silent mix of precisions or ranks in the package an error. The cache makes a second run
    of the suite start warm; a cache that the environment chose is left alone. The suite compiles hundreds of programs
    for data of a few rows, so they are compiled without LLVM's optimisations, in a third of the time; the examples, run
    beside the suite, are compiled as users have them.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # Programs of jmixed's own are kept whole: what one worker has compiled, no module and no other worker traces again.
    # In a directory of the suite's own: they lack the second way of counting, which users' programs have.
    cache = os.environ.get("JMIXED_CACHE", "")
    if cache != "off" and not hasattr(config, "workerinput"):
        programs = Path(cache) / "suite" if cache else config.cache.mkdir("programs")
        programs.mkdir(mode=0o700, parents=True, exist_ok=True)
        programs.chmod(0o700)
        os.environ["JMIXED_CACHE"] = str(programs)
    # Tracing makes millions of objects that live on: looking through them again and again frees nothing.
    gc.set_threshold(100_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="all cases of every sweep, and the tests marked thorough")
    parser.addoption("--one-in", type=int, default=1, metavar="N", help="one in N tests, the same ones each time")


def pytest_collection_modifyitems(config, items):
    """Leave out tests: of a sweep all but some cases, evenly spaced, unless told to be thorough; then all but one in N.

    Which of N stays hangs on the names of the tests, so that all rooms are seen alike.
    """
    sweeps = {}
    for item in items:
        sweeps.setdefault(item.nodeid.split("[")[0], []).append(item)
    out = set()
    if not config.getoption("--thorough"):
        out = {item for item in items if item.get_closest_marker("thorough")}
        for cases in sweeps.values():
            if sweep := cases[0].get_closest_marker("sweep"):
                stay = {k * len(cases) // sweep.args[0] for k in range(sweep.args[0])}
                out |= {case for k, case in enumerate(cases) if k not in stay}
    out |= {item for item in items if zlib.crc32(item.nodeid.encode()) % config.getoption("--one-in")}
    if out:
        config.hook.pytest_deselected(items=[item for item in items if item in out])
        items[:] = [item for item in items if item not in out]


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Every compiled program holds memory maps, of which a process may have 65,530: each module starts with none."""
    from jmixed.runtime import executables

    yield
    executables.forget()
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _one_way_of_counting(request):
    """Traced functions hold a second program, for effects that drown all else, which takes as long again to compile.

    The tests whose data need it, marked `drowned`, have it; the others are compiled without, which a test of
    `tests/fit/test_estimate.py` looks after.
    """
    from jmixed.fit import estimate, solve
    from jmixed.likelihood.moments import moments
    from jmixed.runtime import compilation

    drowned = request.node.get_closest_marker("drowned") is not None

    def forget():
        if drowned:
            estimate._program.cache_clear()
            estimate._traced.cache_clear()
            jax.clear_caches()

    def counted_one_way(rows, columns=None, counted=None, rho=()):
        return moments(rows, columns, bool(counted), rho)

    patch = pytest.MonkeyPatch()
    if drowned or "monkeypatch" in request.fixturenames:
        # A kept program does not know what a test has put in the place of a part of it.
        patch.setattr(compilation, "_kept", [None])
    if not drowned:
        for user in (estimate, solve):
            patch.setattr(user, "cross_products", counted_one_way)
    forget()
    yield
    forget()
    patch.undo()


@pytest.fixture(autouse=True)
def _precision_is_as_before():
    """No test, and nothing that it calls, leaves the precision of JAX changed for those that come after."""
    before = jax.config.jax_enable_x64
    yield
    assert jax.config.jax_enable_x64 == before


# A first call compiles, so time per example says nothing; fixed seeds keep a red run reproducible.
hypothesis.settings.register_profile(
    "house",
    deadline=None,
    max_examples=15,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("house")
