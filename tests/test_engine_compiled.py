"""A step as native code gives what the step itself gives, to rounding, for the same noise."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import (
    Decoder,
    decoder_data,
    normal_data,
    normal_model,
    ready,
    regression_data,
    regression_model,
    subsampled_model,
)
from pyro.infer import autoguide
from steps import as_in_a_fit, assert_runs_as_the_step_does, plain_step, step_of

import pyro_flows as pf
from pyro_flows.errors import DomainError
from pyro_flows.infer.engine import Engine, native
from pyro_flows.infer.engine.native import CompilingError
from pyro_flows.infer.engine.runner import Runner

Y = normal_data()
X = torch.linspace(-1.0, 2.0, 12)


def one_planar(input_dim):
    return pf.flows.planar(input_dim, num_transforms=1)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Compile for this test alone; where it does, the test is slow."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_small_step():
    """The only compilation of the quick suite; later runs find it in the cache."""
    guide = ready(normal_model, Y, flow=one_planar, start="prior", gradient="total")
    step, batch = step_of(normal_model, guide, Y)
    assert_runs_as_the_step_does(step, batch, tolerance=1e-4, native=True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["iaf", "realnvp", "nsf", "bnaf"])
def test_recipes(recipe):
    x, y = regression_data(num=10, dim=3)
    guide = ready(regression_model, x, y, flow=recipe, start="prior")
    step, batch = step_of(regression_model, guide, x, y)
    assert_runs_as_the_step_does(step, batch, tolerance=1e-3, native=True)


def by_hand(y):
    """The second site cannot be drawn ahead, since the first depends on a parameter."""
    shape = pyro.param("shape", torch.tensor(2.0), constraint=dist.constraints.positive)
    with pyro.plate("two", 2):
        pyro.sample("g", dist.Gamma(shape, 1.0))
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def with_gamma(y):
    with pyro.plate("two", 2):
        pyro.sample("g", dist.Gamma(2.0, 1.0))
    normal_model(y)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gamma", "dropout"])
def test_random_numbers_that_depend_on_others_stay_on_the_traced_rung(case):
    """Native code draws them in an order of its own, so that a seed would give another run."""
    if case == "gamma":
        step, batch = step_of(with_gamma, by_hand, Y)
    else:
        model = Decoder()
        step, batch = step_of(model, model.guide, decoder_data())
    with as_in_a_fit():
        runner = Runner(step, batch)
        with pytest.raises(CompilingError, match="other numbers than the step"):
            runner.compile_now()
    assert runner.native is None
    assert_runs_as_the_step_does(step, batch)


@pytest.mark.slow
def test_a_subsample_is_drawn_anew_in_native_code():
    guide = autoguide.AutoNormal(subsampled_model)
    guide(Y)
    step, batch = step_of(subsampled_model, guide, Y)
    assert_runs_as_the_step_does(step, batch, tolerance=1e-3, native=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"particle_chunk": 2}, {"num_importance": 4}], ids=str)
def test_compiled_run_is_the_eager_one(options):
    losses = []
    for engine in ("eager", "compiled", "compiled"):
        guide = pf.AutoFlow(normal_model, flow=one_planar, start="prior")
        options = {"steps": 30, "particles": 8, "lr": 0.02, "seed": 0, **options}
        result = pf.fit(normal_model, guide, Y, engine=engine, progress=False, **options)
        assert result.engine == engine
        losses.append(result.losses)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    np.testing.assert_array_equal(losses[2], losses[1])


def polynomial():
    w = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
    return plain_step(lambda x: ((w[0] * x + w[1] - torch.randn(12)) ** 2).mean(), w)


LATER = """
import sys
sys.path[:0] = {paths!r}
import torch
import test_engine_compiled as t
from pyro_flows.infer.engine import Engine, native
from pyro_flows.infer.engine.native import CompilingError
from pyro_flows.infer.engine.runner import Runner
native.Compilation._start = None
engine = Engine("fit", t.polynomial(), "compiled", 10)
torch.manual_seed(0)
print(repr(float(engine(((t.X,), {{}}))[0])), engine.rung)
"""


@pytest.mark.slow
def test_library_is_kept_for_later_processes_and_nothing_else(own_cache):
    engine = Engine("fit", polynomial(), "compiled", 10)
    torch.manual_seed(0)
    loss = float(engine(((X,), {}))[0])
    engine.close()
    assert [path.name for path in own_cache.iterdir()] == ["cache"]
    (library,) = (own_cache / "cache" / "pyro_flows").iterdir()
    written = library.stat().st_mtime_ns
    paths = [str(Path(__file__).parent), str(Path(pf.__file__).parents[1])]
    code = LATER.format(paths=paths)
    ended = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert ended.stdout.split() == [repr(loss), "compiled"]
    assert library.stat().st_mtime_ns == written
    # A library that was cut off, as by a full disk, may not end the process that loads it.
    whole = library.resolve().read_bytes()
    library.unlink()
    library.write_bytes(whole[: len(whole) // 2])
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert ended.returncode in (0, 1), ended.stderr[-500:]
    assert "DomainError" in ended.stderr or ended.stdout.split() == [repr(loss), "compiled"]


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_operator_that_the_compiler_does_not_know_is_refused():
    library = torch.library.Library("test_engine_compiled", "DEF")
    library.define("double(Tensor x) -> Tensor")
    library.impl("double", lambda x: 2 * x, "CompositeExplicitAutograd")
    w = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
    double = torch.ops.test_engine_compiled.double
    step = plain_step(lambda x: (w * double(x[:2])).sum(), w)
    batch = ((X,), {})
    traced = Engine("fit", step, "traced", 10)
    assert float(traced(batch)[0]) == pytest.approx(float(2 * (w.detach() * X[:2]).sum()))
    with pytest.raises(DomainError, match="can be compiled"):
        Engine("fit", step, "compiled", 10)(batch)


def test_library_depends_on_graph_shapes_and_threads():
    from pyro_flows.infer.engine.graph import Graph

    def path(step, x):
        graph = Graph(step, ((x,), {}))
        return native.library_path(graph.main, [*graph.inputs(((x,), {})), *graph.noise()])

    assert path(polynomial(), X) == path(polynomial(), X + 1)
    others = {path(polynomial(), X), path(polynomial(), X.double())}
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        others.add(path(polynomial(), X))
    finally:
        torch.set_num_threads(threads)
    assert len(others) == 3
