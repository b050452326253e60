"""What holds for every test, and plans that several tests look at; each is made once."""

import gc

import jax
import pytest
import show_programs

import jaxremat
from jaxremat.planning.memory import PLANS
from jaxremat.planning.plan_cache import FOLDER

ROOMS_OF_USERS = (
    "adapters",
    "aot",
    "attention",
    "chunk",
    "compact",
    "compiled",
    "emit",
    "loops",
    "planning",
    "step",
    "trace",
)
"""Rooms whose tests run programs as people write them: with ranks and dtypes promoted."""

NO_PAINS = "jax_disable_most_optimizations"
"""Of LLVM with machine code, which no test looks at; what XLA decides is the same: `compiled/test_compile.py`."""

jax.config.update(NO_PAINS, True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(scope="module", autouse=True)
def promotion(request):
    """Nothing is promoted in silence, but where programs are users' own; `test_strict` holds the library to that."""
    if request.path.parent.name in ROOMS_OF_USERS:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            yield
    else:
        yield


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector need not look at it after every test."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10 * gc.get_threshold()[0])


@pytest.fixture(autouse=True)
def compilers_of_absent_devices(request):
    """They get the options that users' programs get."""
    is_absent = request.node.get_closest_marker("aot") is not None
    jax.config.update(NO_PAINS, not is_absent)


@pytest.fixture(autouse=True)
def no_plans_of_other_tests():
    PLANS.clear()


@pytest.fixture(scope="session", autouse=True)
def no_rates_of_this_user(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def plan():
    loss, args = show_programs.tower()
    return jaxremat.plan(loss, *args, budget=0.6, verify="replay")


@pytest.fixture(scope="session")
def loop_plan():
    loss, args = show_programs.tower(layers=8, scan=True)
    return jaxremat.plan(loss, *args, budget=0.6, verify="replay")


@pytest.fixture(scope="session")
def plain_plan():
    loss, args = show_programs.tower(layers=2)
    return jaxremat.plan(loss, *args, budget=1.0, verify="replay")


@pytest.fixture(scope="session")
def unnamed_plan():
    loss, args = show_programs.unnamed()
    return jaxremat.plan(loss, *args, budget=0.7, verify="replay")


@pytest.fixture(params=["plan", "loop_plan", "plain_plan", "unnamed_plan"])
def any_plan(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[False, True], ids=["remat2", "remat3"])
def remat3(request):
    """JAX's checkpoints in either form."""
    before = jax.config.jax_remat3
    jax.config.update("jax_remat3", request.param)
    yield request.param
    jax.config.update("jax_remat3", before)


@pytest.fixture
def plan_folder(tmp_path, monkeypatch):
    """Where plans are kept on disk."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "plans"))
    return tmp_path / "plans"
