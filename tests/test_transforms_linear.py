"""Linear transforms by their factors, and the orthogonal matrices inside."""

import contracts
import pytest
import torch
import zoo

from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.nn.orthogonal import householder_matrix
from pyro_flows.numerics import solve_rows
from pyro_flows.transforms import LULinear, Orthogonal, QRLinear

NAN = float("nan")
LINEAR = ["lu_linear", "lu_linear_located", "lu_linear_permuted", "qr_linear", "qr_linear_long"]


def _matrix(transform):
    """Return the matrix of a linear transform."""
    unit = torch.eye(transform.input_dim, dtype=transform.loc.dtype)
    return (transform(unit) - transform.loc).T


def _distance_to_orthogonal(matrix):
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype)
    return float((matrix @ matrix.mT - eye).detach().abs().max())


# Matrices of Householder reflections.


def _by_steps(vectors):
    product = torch.eye(vectors.shape[-1], dtype=vectors.dtype)
    for v in vectors:
        product = product - 2 * torch.outer(product @ v, v) / v.square().sum()
    return product


@pytest.mark.parametrize(("k", "d"), [(1, 1), (1, 4), (3, 4), (4, 4), (9, 4), (5, 1), (0, 3)])
def test_householder_matrix_is_the_product_of_reflections(k, d):
    vectors = zoo.points(k, d)
    got = householder_matrix(vectors)
    contracts.close(got, _by_steps(vectors), "product")
    assert _distance_to_orthogonal(got) < 1e-13
    assert torch.linalg.det(got).sign() == (-1) ** k


def test_householder_matrix_is_batched():
    vectors = zoo.points(2, 5, 3, 4)
    want = torch.stack([torch.stack([_by_steps(v) for v in row]) for row in vectors])
    contracts.close(householder_matrix(vectors), want, "batch")
    contracts.close(torch.func.vmap(householder_matrix)(vectors), want, "vmap")
    assert householder_matrix(vectors[:0]).shape == (0, 5, 4, 4)


def test_householder_matrix_has_its_derivatives():
    vectors = zoo.points(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(householder_matrix, vectors)
    assert torch.autograd.gradgradcheck(householder_matrix, vectors)


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-18, 1e-8, 1.0, 1e8, 1e18, 1e30, 3e37])
def test_householder_matrix_is_orthogonal_at_any_length(size):
    vectors = (size * zoo.points(4, 5, dtype=torch.float32, scale=1.0)).requires_grad_()
    matrix = householder_matrix(vectors)
    assert _distance_to_orthogonal(matrix) < 1e-5
    (gradient,) = torch.autograd.grad(matrix.square().sum() + matrix.sum(), vectors)
    contracts.finite(gradient, "gradient", inputs=vectors)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize(("k", "d"), [(64, 64), (1000, 2), (100, 3)])
def test_householder_matrix_is_orthogonal_where_vectors_depend_on_each_other(k, d, spread):
    direction = zoo.points(1, d, dtype=torch.float32)
    vectors = direction + spread * zoo.points(k, d, dtype=torch.float32, seed=3)
    assert _distance_to_orthogonal(householder_matrix(vectors)) < 5e-4


def test_householder_matrix_takes_a_zero_for_the_first_unit_vector():
    vectors = torch.zeros(1, 3, requires_grad=True)
    matrix = householder_matrix(vectors)
    assert torch.equal(matrix, torch.diag(torch.tensor([-1.0, 1.0, 1.0])))
    assert torch.equal(torch.autograd.grad(matrix.sum(), vectors)[0], torch.zeros(1, 3))


@pytest.mark.parametrize("fault", [NAN, torch.inf])
def test_householder_matrix_hides_no_fault(fault):
    """FAULTS 16."""
    vectors = torch.stack([torch.tensor([[1.0, fault]]), torch.tensor([[1.0, 1.0]])])
    faulty, sound = householder_matrix(vectors)
    assert faulty.isnan().any()
    contracts.finite(sound, "the other matrix")


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_solve_rows(upper, batch):
    matrix = torch.eye(4) + (torch.ones(4, 4).triu() if upper else torch.ones(4, 4).tril())
    rows = zoo.points(*batch, 4, dtype=torch.float32)
    got = solve_rows(matrix, rows, upper=upper)
    contracts.close(got @ matrix.T, rows, "product", inputs=rows)


# Rotations.


@pytest.mark.parametrize("d", [2, 3, 4, 7])
def test_orthogonal_is_a_rotation(d):
    transform = zoo.build("orthogonal", d)
    matrix = transform(torch.eye(d, dtype=torch.float64)).T
    assert _distance_to_orthogonal(matrix) < 1e-13
    assert torch.linalg.det(matrix) > 0
    contracts.close(
        transform(zoo.points(5, d)).norm(dim=-1), zoo.points(5, d).norm(dim=-1), "norm"
    )


@pytest.mark.parametrize(("num_reflections", "sign"), [(1, -1), (2, 1), (3, -1), (8, 1)])
def test_number_of_reflections_sets_the_orientation(num_reflections, sign):
    matrix = Orthogonal(3, num_reflections=num_reflections)(torch.eye(3)).T
    contracts.close(torch.linalg.det(matrix), torch.tensor(float(sign)), "determinant")
    contracts.close(matrix @ matrix, torch.eye(3), "reflection, or identity, at the start")


def test_orthogonal_of_a_line_has_nothing_to_learn():
    """FAULTS 4."""
    assert not list(Orthogonal(1).parameters())
    contracts.starts_at_identity(Orthogonal(1), zoo.points(5, 1, dtype=torch.float32), None)


@pytest.mark.parametrize("d", [2, 3, 4])
def test_orthogonal_keeps_the_contracts_of_what_learns(d):
    """The zoo leaves it out there, since a rotation leaves the density of a flow as it is."""
    contracts.starts_at_identity(Orthogonal(d), zoo.points(9, d, dtype=torch.float32), None)
    contracts.gradients_match_differences(zoo.build("orthogonal", d), zoo.points(3, d), None)
    for transform in (Orthogonal(d).double(), zoo.build("orthogonal", d)):
        for name, direction in contracts.directions(transform):
            transform.zero_grad()
            (direction(zoo.points(9, d))[0] * zoo.points(9, d, seed=4)).sum().backward()
            gradient = transform.rotation.vectors.grad
            assert (gradient.abs().amax(-1) > 1e-3).all(), f"{name}: {gradient}"


def test_paired_reflections_part():
    """Two equal reflections are the identity; their gradients are opposite, so that they part."""
    transform = Orthogonal(4).double()
    (transform(zoo.points(9, 4)) * zoo.points(9, 4, seed=4)).sum().backward()
    vectors = transform.rotation.vectors
    contracts.close(vectors.grad[0::2], -vectors.grad[1::2], "gradient")
    assert torch.equal(vectors[0::2], vectors[1::2])
    assert not torch.equal(vectors[0], vectors[2])


@pytest.mark.parametrize("d", [2, 3, 4, 5])
def test_orthogonal_reaches_a_random_rotation(d):
    """From the start, by gradient descent, and so from the identity."""
    torch.manual_seed(d)
    target, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))
    target[0] *= torch.linalg.det(target).sign()
    transform, x = Orthogonal(d).double(), torch.eye(d, dtype=torch.float64)
    optimiser = torch.optim.Adam(transform.parameters(), lr=0.05)
    for _ in range(500):
        optimiser.zero_grad()
        loss = (transform(x) - x @ target.T).square().sum()
        loss.backward()
        optimiser.step()
    assert loss < 1e-3, f"the squared distance is still {float(loss)}"


# Matrices of full rank.


@pytest.mark.parametrize("d", [1, 2, 5, 20])
@pytest.mark.parametrize("name", LINEAR)
def test_log_determinant_is_that_of_the_matrix(name, d):
    transform, x = zoo.build(name, d), zoo.points(3, d)
    sign, want = torch.linalg.slogdet(_matrix(transform))
    assert sign != 0
    y, ladj = transform.forward_and_ladj(x)
    contracts.close(ladj, want.expand(3), "ladj")
    contracts.close(y, x @ _matrix(transform).T + transform.loc, "y", inputs=x)


@pytest.mark.parametrize("d", [2, 5, 20])
def test_qr_has_a_triangular_factor_with_a_positive_diagonal(d):
    transform = zoo.build("qr_linear", d)
    factor = transform.rotation().T @ _matrix(transform)
    contracts.close(factor, factor.triu(), "R")
    contracts.close(factor.diagonal(), transform.log_scale.exp(), "diagonal of R")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [1, 2, 6])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_lu_starts_at_a_given_matrix(d, context_dim, dtype):
    """Whatever the sign of its determinant and the order of its pivots."""
    for seed in range(6):
        matrix = zoo.points(d, d, dtype=dtype, seed=seed)
        matrix[0, 0] = 0.0 if d > 1 else -2.0
        transform = LULinear(d, matrix=matrix, context_dim=context_dim)
        x, context = zoo.points(5, d, dtype=dtype), zoo.context_for(transform, dtype=dtype)
        y, ladj = transform.forward_and_ladj(x, context)
        contracts.close(y, x @ matrix.T, "y", inputs=x)
        contracts.close(ladj, torch.linalg.slogdet(matrix)[1].expand(5), "ladj")


def test_lu_permutes_as_permute_does():
    order, x = [2, 0, 1], zoo.points(5, 3, dtype=torch.float32)
    contracts.same_map(LULinear(3, permutation=order), zoo.Permute(order), x, None)


@pytest.mark.parametrize("raw", [-60.0, -20.0, 20.0, 60.0])
@pytest.mark.parametrize("kind", [LULinear, QRLinear])
def test_no_parameters_make_the_matrix_singular(kind, raw):
    """FAULTS 26: the diagonal is positive by construction, however far the parameters go."""
    transform = kind(3)
    with torch.no_grad():
        transform.log_scale.copy_(torch.tensor([raw, -raw, raw]))
    x = zoo.points(20, 3, dtype=torch.float32)
    for name, direction in contracts.directions(transform):
        value, ladj = direction(x)
        contracts.finite(value, f"{name} value", inputs=x)
        assert torch.equal(ladj, torch.full_like(ladj, raw if name == "forward" else -raw))


BAD = [
    # FAULTS 26: a matrix that cannot be inverted.
    (lambda: LULinear(2, matrix=torch.zeros(2, 2)), DomainError, "invertible; got pivots betw"),
    (lambda: LULinear(2, matrix=torch.ones(2, 2)), DomainError, "pivots between 0 and 1"),
    (lambda: LULinear(2, matrix=torch.tensor([[1.0, 0.0], [0.0, 1e-9]])), DomainError, "1e-09"),
    (lambda: LULinear(2, matrix=torch.tensor([[1.0, NAN], [0.0, 1.0]])), DomainError, "finite"),
    (lambda: LULinear(2, matrix=torch.eye(3)), ShapeError, r"matrix of shape \(2, 2\)"),
    (lambda: LULinear(2, matrix=[[1, 0], [0, 1]]), DomainError, "matrix to be .* tensor"),
    (lambda: LULinear(1, matrix=torch.eye(1).int()), DomainError, "got a int32 tensor"),
    # FAULTS 11.
    (lambda: LULinear(2, permutation=[0, 0]), DomainError, r"each of 0 .*; got \[0, 0\]"),
    (lambda: LULinear(2, permutation=[0, 2, 1]), DomainError, r"0 ... 1 once; got \[0, 2, 1"),
    (
        lambda: LULinear(2, permutation=[1, 0], matrix=torch.eye(2)),
        DomainError,
        "^LULinear: expected a permutation or a matrix; got both",
    ),
    (lambda: LULinear(2, context_dim=-1), DomainError, "^LULinear: expected context_dim"),
    (lambda: QRLinear(2, context_dim=1, hidden_dims=0), DomainError, "hidden_dims to be a seq"),
    (lambda: QRLinear(2, num_reflections=0), DomainError, "^QRLinear: expected num_reflections"),
    (lambda: Orthogonal(2, num_reflections=1.5), DomainError, "num_reflections .* got 1.5"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD)
def test_bad_arguments(call, error, words):
    """FAULTS 11, 26."""
    with pytest.raises(error, match=words):
        call()
