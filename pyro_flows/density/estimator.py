"""A density estimator with scikit-learn's conventions."""

import importlib
import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks, flows
from pyro_flows.density.minibatches import check_rows, split
from pyro_flows.density.mle import fit_mle
from pyro_flows.density.preparation import (
    WAYS,
    as_table,
    check_columns,
    complete_rows,
    scaling,
)
from pyro_flows.density.result import MleResult
from pyro_flows.density.validation import log_likelihood
from pyro_flows.distributions import Flow
from pyro_flows.errors import DomainError, ShapeError
from pyro_flows.infer.random import seeded

_WHO = "FlowDensity"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_ROWS_AT_ONCE = 2**15


class FlowDensity:
    r"""Estimate the density of the rows of a table by a flow.

    .. math:: \log q(x \mid c) = \log p_0(\epsilon) - \log |\det \partial x / \partial \epsilon|

    It follows scikit-learn's conventions and works in its ``Pipeline``, ``GridSearchCV`` and
    ``clone``, without needing that library. Columns are standardised by the rows that are trained
    on; densities are those of the data as they are, the standardisation's Jacobian included.

    Args:
        flow: Name of a recipe (:mod:`pyro_flows.flows`), or a function ``(input_dim, *,
            context_dim=0) -> Flow``.
        standardise: ``"sd"``, ``"robust"`` (medians and quartiles), ``"whiten"`` or ``"none"``.
        dequantise: Whether to add noise, uniform on [0, 1), to columns of integers.
        drop_missing: Whether to drop rows with a NaN or an infinity.
        validation: The share of the rows to hold out, which choose the state and the end.
        epochs: Largest number of passes over the rows.
        batch_size: Rows of a step.
        lr: Largest step size.
        weight_decay: Decoupled decay of the parameters.
        patience: Epochs without a better held-out likelihood after which to stop, or ``None``.
        num_starts: Number of fits, of which the best on the held-out rows is kept.
        dtype: ``"float32"`` or ``"float64"``.
        engine: How steps run, as in :func:`~pyro_flows.density.fit_mle`.
        random_state: Seeds parameters, split, order and noise.
        progress: Whether to show a progress bar.

    Attributes:
        flow_: The fitted flow, over the data as they are.
        result_: How the fit went: an :class:`~pyro_flows.density.MleResult`.
        n_features_in_: Number of columns.

    Raises:
        DomainError: On fitting: an argument or the table is not possible.
        NonFiniteError: On fitting: the table holds NaN or infinities.

    Reference:
        Papamakarios, Nalisnick, Rezende, Mohamed & Lakshminarayanan (2021), *Normalizing flows for
        probabilistic modeling and inference*.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(3.0, 2.0, size=(400, 2))
        >>> density = FlowDensity("realnvp", epochs=2, random_state=0).fit(X)
        >>> density.score_samples(X[:5]).shape, density.sample(10).shape
        ((5,), (10, 2))
    """

    def __init__(
        self,
        flow: str | flows.Recipe = "nsf",
        *,
        standardise: str = "sd",
        dequantise: bool = False,
        drop_missing: bool = False,
        validation: float = 0.1,
        epochs: int = 200,
        batch_size: int = 256,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        patience: int | None = 30,
        num_starts: int = 1,
        dtype: str = "float32",
        engine: str = "auto",
        random_state: int | None = None,
        progress: bool = False,
    ) -> None:
        self.flow, self.standardise, self.dequantise = flow, standardise, dequantise
        self.drop_missing, self.validation = drop_missing, validation
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr
        self.weight_decay, self.patience, self.num_starts = weight_decay, patience, num_starts
        self.dtype, self.engine, self.random_state = dtype, engine, random_state
        self.progress = progress

    @classmethod
    def _names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments, by name.

        Args:
            deep: Not used; there are no estimators inside.
        """
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> "FlowDensity":
        """Set arguments by name, and return the estimator.

        Args:
            **params: Those of the constructor.

        Raises:
            DomainError: There is no such argument.
        """
        for name, value in params.items():
            setattr(self, _checks.check_choice(_WHO, "a parameter", name, self._names()), value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default and value != defaults[name].default
        ]
        return f"FlowDensity({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        # Called by scikit-learn alone, so that it is there.
        tags: Any = importlib.import_module("sklearn.utils")
        return tags.Tags(
            estimator_type="density_estimator",
            target_tags=tags.TargetTags(required=False),
            input_tags=tags.InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "flow_")

    def fit(self, X: Any, y: Any = None, context: Any = None) -> "FlowDensity":
        """Fit the flow to the rows of a table, and return the estimator.

        Args:
            X: Rows, of shape ``(N, D)``: an array, a tensor, or a data frame.
            y: Not used, as scikit-learn's conventions want it.
            context: What each row is given, of shape ``(N, C)``.
        """
        _checks.check_choice(_WHO, "standardise", self.standardise, WAYS)
        num_starts = _checks.check_count(_WHO, "num_starts", self.num_starts)
        tables = self._tables(X, context)
        tables = complete_rows(_WHO, tables, drop_missing=self.drop_missing)
        with seeded(_WHO, self._seed()):
            tables = self._dequantised(tables)
            train, held_out = split(_WHO, tables, self.validation)
            check_columns(_WHO, train[0])
            fits = [self._one_fit(train, held_out) for _ in range(num_starts)]
        self.flow_, self.result_ = min(fits, key=lambda fit: fit[1].nll)
        self.n_features_in_ = tables[0].shape[1]
        return self

    def score_samples(self, X: Any, context: Any = None) -> np.ndarray:
        """Return the log-density of each row, in nats, of shape ``(N,)``.

        Args:
            X: Rows, of shape ``(N, D)``.
            context: Of shape ``(N, C)``, where the flow was fitted with one.

        Raises:
            DomainError: The estimator is not fitted.
            ShapeError: There are other columns than it was fitted to.
        """
        flow = self._fitted()
        tables = self._tables(X, context)
        self._check_columns(tables)
        with seeded(_WHO, self._seed()), torch.no_grad():
            chunks = zip(*(t.split(_ROWS_AT_ONCE) for t in self._dequantised(tables)), strict=True)
            scores = [log_likelihood(flow, *chunk) for chunk in chunks]
        return torch.cat(scores).double().numpy()

    def score(self, X: Any, y: Any = None, context: Any = None) -> float:
        """Return the mean log-density of the rows, in nats.

        Args:
            X: Rows, of shape ``(N, D)``.
            y: Not used, as scikit-learn's conventions want it.
            context: Of shape ``(N, C)``, where the flow was fitted with one.
        """
        return float(self.score_samples(X, context).mean())

    def sample(
        self, n_samples: int = 1, context: Any = None, random_state: int | None = None
    ) -> np.ndarray:
        """Return draws, of shape ``(n_samples, D)``.

        Args:
            n_samples: Number of draws; with a context, as many as it has rows.
            context: Of shape ``(n_samples, C)``, where the flow was fitted with one.
            random_state: Seeds the draws, and leaves the global random state alone.
        """
        flow = self._fitted()
        n_samples = _checks.check_count(_WHO, "n_samples", n_samples)
        with seeded(_WHO, random_state), torch.no_grad():
            if not flow.context_dim:
                draws = flow.sample((n_samples,))
            else:
                table = as_table(_WHO, "context", context, self._dtype())
                draws = flow.condition(table).sample()
        return np.asarray(draws.floor() if self.dequantise else draws)

    def _one_fit(self, train: list[Tensor], held_out: list[Tensor]) -> tuple[Flow, MleResult]:
        flow = self._build(train)
        result = fit_mle(
            flow,
            train[0],
            context=train[1] if len(train) > 1 else None,
            validation=(held_out[0], held_out[1]) if len(train) > 1 else held_out[0],
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
            patience=self.patience,
            engine=self.engine,
            progress=self.progress,
        )
        return flow.eval(), result

    def _build(self, train: list[Tensor]) -> Flow:
        recipe, dim = flows.find(self.flow), train[0].shape[1]
        options = {"context_dim": train[1].shape[1]} if len(train) > 1 else {}
        inner: Any = recipe(dim, **options)
        if not isinstance(inner, Flow) or inner.event_shape != (dim,):
            raise _checks.refusal(
                ShapeError,
                _WHO,
                expected=f"the recipe to return a Flow over {dim} coordinates",
                got=_checks.describe(inner),
            )
        inner = inner.to(self._dtype())
        outer = scaling(_WHO, self.standardise, train[0])
        return inner if outer is None else Flow([inner.transform, outer], base=inner.base_dist)

    def _tables(self, X: Any, context: Any) -> list[Tensor]:
        tables = [as_table(_WHO, "X", X, self._dtype())]
        if context is not None:
            tables.append(as_table(_WHO, "context", context, self._dtype()))
        return check_rows(_WHO, tables[0], tables[1] if len(tables) > 1 else None)

    def _dequantised(self, tables: list[Tensor]) -> list[Tensor]:
        if not self.dequantise:
            return tables
        data, *rest = tables
        integers = (data == data.round()).all(0)
        return [torch.where(integers, data + torch.rand_like(data), data), *rest]

    def _dtype(self) -> torch.dtype:
        return _DTYPES[_checks.check_choice(_WHO, "dtype", self.dtype, tuple(_DTYPES))]

    def _seed(self) -> int | None:
        return self.random_state

    def _fitted(self) -> Flow:
        flow: Flow | None = getattr(self, "flow_", None)
        if flow is None:
            raise _checks.refusal(
                DomainError,
                _WHO,
                expected="a fitted estimator",
                got="one that was not fitted",
                advice="Call fit(X) first.",
            )
        return flow

    def _check_columns(self, tables: list[Tensor]) -> None:
        columns = tables[0].shape[1]
        if columns != self.n_features_in_:
            raise _checks.refusal(
                ShapeError,
                _WHO,
                expected=f"X of {self.n_features_in_} columns, as it was fitted to",
                got=f"{columns}",
            )
