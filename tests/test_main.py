"""The command line: prints the summary and exits 0, or says in one line what is wrong and exits 2."""

import os
import subprocess
import sys

import jax
import pytest
from references import data

import jmixed as jm
from jmixed.__main__ import main
from jmixed.runtime import compilation, executables
from jmixed.runtime.compilation import default_directory


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch):
    monkeypatch.setenv("JMIXED_CACHE", "off")


def run(capsys, *arguments):
    status = main(arguments)
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_a_bundled_data_set(capsys):
    status, out, err = run(capsys, "Reaction ~ Days + (Days | Subject)", "--data", "sleepstudy")
    assert (status, err) == (0, "")
    assert "Days                10.467    1.546  6.771" in out


def test_statsmodels_arguments_and_a_file(capsys, tmp_path):
    path = tmp_path / "pastes.csv"
    jm.datasets.load("pastes").to_csv(path, index=False)
    words = ["--groups", "batch", "--re", "1", "--vc", "cask=0 + C(cask)", "--ml"]
    status, out, err = run(capsys, "strength ~ 1", "--data", str(path), *words)
    assert (status, err) == (0, "")
    result = jm.mixedlm(
        "strength ~ 1", jm.datasets.load("pastes"), groups="batch", re_formula="1", vc_formula={"cask": "0 + C(cask)"}
    ).fit(reml=False)
    assert out == f"{result.summary()}\n"
    assert "Method:             ML" in out


def test_weights_offset_and_missing(capsys, tmp_path):
    data = jm.datasets.load("sleepstudy").assign(w=2.0, o=1.0)
    data.loc[0, "Days"] = float("nan")
    path = tmp_path / "sleep.parquet"
    data.to_parquet(path)
    arguments = ["Reaction ~ Days + (1 | Subject)", "--data", str(path), "--weights", "w", "--offset", "o"]
    status, out, err = run(capsys, *arguments, "--missing", "drop")
    assert (status, err) == (0, "")
    expected = jm.mixedlm("Reaction ~ Days + (1 | Subject)", data, weights="w", offset="o", missing="drop").fit()
    assert out == f"{expected.summary()}\n"
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert "Use --missing drop" in err


def test_a_response_with_a_family(capsys, tmp_path):
    frame = data("cbpp")
    path = tmp_path / "cows.csv"
    frame.to_csv(path, index=False)
    words = ["incidence ~ period + (1 | herd)", "--data", str(path), "--family", "binomial", "--trials", "size"]
    status, out, err = run(capsys, *words)
    assert (status, err) == (0, "")
    expected = jm.mixedglm("incidence ~ period + (1 | herd)", frame, "binomial", trials="size").fit()
    assert out == f"{expected.summary()}\n"
    status, out, err = run(capsys, *words, "--link", "log")
    assert (status, out) == (2, "")
    assert "the link of Binomial is 'log'; it must be one of logit, probit, cloglog" in err
    status, out, err = run(capsys, *words[:3], "--trials", "size")
    assert (status, out) == (2, "")
    assert "--trials belongs to a response with a family: give --family, too" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["Reaction ~ Dais + (1 | Subject)", "--data", "sleepstudy"],
            "mean 'Days'?: Reaction ~ Dais + (1 | Subject)\n",
        ),
        (["Reaction ~ Days + (1 | Subject", "--data", "sleepstudy"], "parenthesis is not closed"),
        (["Reaction ~ Days", "--data", "sleepstudy"], "groups"),
        (["Reaction ~ Days", "--data", "nowhere.csv"], "no such file"),
        (["Reaction ~ Days", "--data", "sleepstudy", "--groups", "Subject", "--vc", "Days"], "NAME=FORMULA"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_no_table(capsys, tmp_path):
    path = tmp_path / "bad.parquet"
    path.write_bytes(b"no parquet")
    status, _, err = run(capsys, "y ~ x + (1 | g)", "--data", str(path))
    assert status == 2
    assert "cannot be read as a table" in err


def test_parquet_without_pyarrow_says_what_to_install(capsys, tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1")

    def absent(*_):
        raise ImportError("Missing optional dependency 'pyarrow'")

    monkeypatch.setattr("pandas.read_parquet", absent)
    status, _, err = run(capsys, "y ~ x + (1 | g)", "--data", str(path))
    assert status == 2
    assert "pip install pyarrow" in err


def test_warnings_are_one_line_each(capsys):
    status, out, err = run(capsys, "Yield ~ 1 + (1 | Batch)", "--data", "dyestuff2")
    assert status == 0
    assert "Singular fit" in out
    assert err.startswith("jmixed: warning: ")
    assert len(err.splitlines()) == 1


def test_usage_errors_have_status_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["Reaction ~ Days"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("jmixed: error: ")
    assert "--data" in error
    assert len(error.splitlines()) == 1


def test_two_columns_of_one_name_are_refused(capsys, tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("y,y,g\n1,2,a\n2,3,a\n3,4,b\n4,1,b\n")
    status, out, err = run(capsys, "y ~ 1 + (1 | g)", "--data", str(path))
    assert (status, out) == (2, "")
    assert "duplicate column names: ['y']" in err


@pytest.mark.skipif(sys.platform == "win32", reason="the cache directory is found in another way there")
def test_the_cache_directory_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "jmixed"


def test_the_cache_can_be_left_off():
    before = jax.config.jax_compilation_cache_dir
    assert jm.enable_compilation_cache() is None
    assert jm.enable_compilation_cache("off") is None
    assert jax.config.jax_compilation_cache_dir == before


def test_the_cache_keeps_small_programs(tmp_path):
    # In a process of its own: the cache is an option of JAX for the whole process.
    code = (
        "import jax, jax.numpy as jnp, jmixed as jm\n"
        f"path = jm.enable_compilation_cache({str(tmp_path / 'kept')!r})\n"
        "jax.jit(lambda x: 3 * x + 1)(jnp.ones(3)).block_until_ready()\n"
        "print(len(list(path.iterdir())))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


def run_alone(tmp_path, stdout=subprocess.PIPE, **environment):
    """The command line in a process of its own, without more of an environment than is given."""
    command = [sys.executable, "-m", "jmixed", "Yield ~ 1 + (1 | Batch)", "--data", "dyestuff"]
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "JMIXED_CACHE", "XDG_CACHE_HOME")}
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=kept | environment)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk that is always full")
def test_a_full_disk_is_one_line_and_status_2(tmp_path):
    with open("/dev/full", "w") as full:
        process = run_alone(tmp_path, stdout=full, JMIXED_CACHE=str(tmp_path / "kept"))
        _, err = process.communicate()
    assert process.returncode == 2
    assert err.startswith("jmixed: error: the summary cannot be written: ")
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes like these there")
def test_who_has_read_enough_is_not_told_off(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    process = run_alone(tmp_path, stdout=writing, JMIXED_CACHE=str(tmp_path / "kept"))
    os.close(writing)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


def test_kept_programs_are_counted_and_deleted(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("jmixed.runtime.compilation._kept", [tmp_path])
    (tmp_path / "jmixed-1.program").write_bytes(bytes(3_000_000))
    (tmp_path / "other").write_text("not ours")
    assert run(capsys, "cache") == (0, f"{tmp_path}: 1 programs, 3.0 MB of at most 1074\n", "")
    assert run(capsys, "cache", "--clear") == (0, f"{tmp_path}: 1 programs deleted\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    monkeypatch.setattr("jmixed.runtime.compilation._kept", [None])
    assert "JMIXED_CACHE" in run(capsys, "cache")[1]


def test_models_that_are_compiled_ahead_trace_nothing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("jmixed.runtime.compilation._kept", [tmp_path])
    monkeypatch.setattr("jmixed.__main__.USUAL", ("x |",))
    status, out, err = run(capsys, "warm", "Subject", "--data", "sleepstudy")
    assert (status, err) == (0, "")
    assert out.startswith("(x | Subject): ")
    executables.forget()
    before = compilation._traces()
    for reml in (True, False):
        result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit(reml=reml)
        assert "10.467" in str(result.summary())
        assert len(result.test()) == 2
    assert compilation._traces() == before
    assert "has no column 'subject': it has" in run(capsys, "warm", "subject", "--data", "sleepstudy")[2]
    monkeypatch.setattr("jmixed.runtime.compilation._kept", [None])
    with pytest.raises(SystemExit):
        run(capsys, "warm", "Subject", "--data", "sleepstudy")
    assert "no programs are kept" in capsys.readouterr().err


def test_without_a_home_directory_one_line_says_so(capsys, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("jmixed.runtime.compilation.Path.home", homeless)
    for name in ("JMIXED_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    status, out, err = run(capsys, "Yield ~ 1 + (1 | Batch)", "--data", "dyestuff")
    assert status == 0
    assert "Batch" in out
    assert err.startswith("jmixed: warning: no compilation cache (")
    assert "JMIXED_CACHE" in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="permissions as POSIX has them")
def test_a_cache_directory_is_the_users_alone(monkeypatch, tmp_path):
    before = {name: jax.config.values[name] for name in jax.config.values if "compilation_cache" in name}
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.warns(UserWarning, match="nothing is kept in .*open.*chmod go-w"):
        assert jm.enable_compilation_cache(open_to_all) is None
    assert before == {name: jax.config.values[name] for name in before}
    code = (
        "import os, jmixed as jm\n"
        "os.umask(0)\n"
        "paths = [jm.enable_compilation_cache(), jm.enable_compilation_cache(os.environ['HOME'] + '/own')]\n"
        "paths[0].chmod(0o775)\n"
        "print(*(oct(path.stat().st_mode & 0o777) for path in [*paths, jm.enable_compilation_cache()]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("JMIXED_CACHE", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"HOME": str(tmp_path)},
    )
    assert done.stdout.split() == ["0o755", "0o700", "0o755"]


def test_a_later_process_does_not_even_trace_the_programs_of_a_fit(tmp_path, monkeypatch):
    monkeypatch.delenv("JMIXED_COMPILE", raising=False)
    code = (
        "import jax, jmixed as jm\n"
        "from jmixed.runtime import compilation\n"
        f"path = jm.enable_compilation_cache({str(tmp_path)!r})\n"
        "traced = []\n"
        "def listen(event, seconds, **words):\n"
        "    traced.append(words.get('fun_name')) if 'trace_duration' in event else None\n"
        "jax.monitoring.register_event_duration_secs_listener(listen)\n"
        "model = jm.mixedlm('Reaction ~ Days + (1 | Subject)', jm.datasets.load('sleepstudy'))\n"
        "print(model.fit().objective, model.fit().objective, '_fit_program' in traced)\n"
        # Nothing is left in memory: what was put in the place of a damaged file is read.
        "traced.clear(), compilation.forget_programs(), jax.clear_caches()\n"
        "print(model.fit().objective, '_fit_program' in traced)\n"
    )

    def run_once():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return done.stdout.split()

    first, second, traced, *anew = run_once()
    assert first == second
    assert traced == "True"
    assert anew == [first, "False"]
    assert run_once() == [first, first, "False", *anew]
    (program,) = tmp_path.glob("jmixed-*.steps")
    for useless in (program.read_bytes()[:1000], b"nothing of use"):
        program.write_bytes(useless)
        assert run_once() == [first, first, "True", *anew]


def test_importing_adds_nothing_heavy():
    code = (
        "import sys, formulaic, jax, pandas\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "import jmixed, jmixed.plot, jmixed.interop\n"
        "heavy = {'statsmodels', 'matplotlib', 'narwhals', 'optax', 'pyarrow', 'polars', 'arviz', 'marginaleffects'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules} - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_leaves_statistics_of_scipy_and_the_garbage_collector_alone():
    code = (
        "import gc, sys, formulaic\n"
        "before = set(sys.modules)\n"
        "import jmixed\n"
        "print(sorted({'scipy.special', 'scipy.stats', 'scipy.optimize'} & set(sys.modules) - before))\n"
        "print(gc.isenabled(), gc.get_freeze_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True 0"]


def test_the_door():
    assert len(jm.__all__) <= 44
    assert all(hasattr(jm, name) for name in jm.__all__)
    assert jm.__all__ == sorted(jm.__all__)
