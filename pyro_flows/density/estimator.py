"""A density estimator with scikit-learn's conventions."""

import inspect
import logging
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows import _checks, flows
from pyro_flows.density.contexts import StandardisedContext, context_scaling
from pyro_flows.density.conventions import Conventions, as_device, as_seed, check_repeatable
from pyro_flows.density.dequantised import Density, Dequantised
from pyro_flows.density.matching import fit_matching
from pyro_flows.density.minibatches import check_rows, split
from pyro_flows.density.mle import fit_mle
from pyro_flows.density.preparation import WAYS, check_columns, scaling
from pyro_flows.density.result import MleResult
from pyro_flows.density.tables import Columns, as_table, columns_of, complete_rows
from pyro_flows.density.validation import log_likelihood, rows_at_once
from pyro_flows.distributions import Flow
from pyro_flows.errors import NonFiniteError, ShapeError
from pyro_flows.infer.random import seeded
from pyro_flows.transforms import FlowTransform

logger = logging.getLogger("pyro_flows")

_WHO = "FlowDensity"
_OBJECTIVES = ("likelihood", "matching")
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class FlowDensity(Conventions):
    r"""Estimate the density of the rows of a table by a flow.

    .. math:: \log q(x \mid c) = \log p_0(\epsilon) - \log |\det \partial x / \partial \epsilon|

    It follows scikit-learn's conventions and works in its ``Pipeline``, ``GridSearchCV`` and
    ``clone``, without needing that library. Columns are standardised by the rows that are trained
    on, those of a context as well; densities are those of the data as they are, the
    standardisation's Jacobian included, given the contexts as they are.

    Args:
        flow: Name of a recipe (:mod:`pyro_flows.flows`), or a function ``(input_dim, *,
            context_dim=0) -> Flow``.
        objective: ``"likelihood"``: :func:`~pyro_flows.density.fit_mle`; or ``"matching"``:
            :func:`~pyro_flows.density.fit_matching`, for a continuous flow such as ``"cnf"``, with
            more epochs, a larger ``lr`` and no ``patience``.
        standardise: ``"sd"``, ``"robust"`` (medians and quartiles), ``"whiten"`` or ``"none"``.
        dequantise: Whether columns of integers take noise, uniform on [0, 1) and fresh at each
            step; of them, log-probabilities are then bounded and draws are integers.
        drop_missing: Whether to drop rows with a NaN or an infinity.
        validation: The share of the rows to hold out, which choose the state and the end.
        epochs: Largest number of passes over the rows.
        batch_size: Rows of a step.
        lr: Largest step size.
        weight_decay: Decoupled decay of the parameters.
        patience: Epochs without a better held-out likelihood after which to stop, or ``None``.
        num_starts: Number of fits, of which the best on the held-out rows is kept.
        dtype: ``"float32"`` or ``"float64"``.
        device: Where the flow is trained and used, such as ``"cuda"``.
        engine: How steps run, as in :func:`~pyro_flows.density.fit_mle`.
        random_state: Seeds parameters, split, order and noise: a count, or a generator of numpy's,
            which a seed is drawn from; by torch's global random state if not given.
        progress: Whether to show a progress bar.

    Attributes:
        flow_: The fitted flow, over the data as they are.
        density_: The distribution of the data: the flow, or, with ``dequantise``, a
            :class:`~pyro_flows.density.Dequantised` one.
        result_: How the fit went: an :class:`~pyro_flows.density.MleResult`.
        n_features_in_: Number of columns.
        feature_names_in_: Their names, where the rows came as a data frame with names.
        context_names_in_: Those of the context, where it did.

    Raises:
        DomainError: On fitting: an argument or the table is not possible. Every error about a
            table is a ``ValueError`` as well.
        NonFiniteError: On fitting and scoring: the table holds NaN or infinities.

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
        objective: str = "likelihood",
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
        device: str = "cpu",
        engine: str = "auto",
        random_state: Any = None,
        progress: bool = False,
    ) -> None:
        self.flow, self.objective = flow, objective
        self.standardise, self.dequantise = standardise, dequantise
        self.drop_missing, self.validation = drop_missing, validation
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr
        self.weight_decay, self.patience, self.num_starts = weight_decay, patience, num_starts
        self.dtype, self.device, self.engine = dtype, device, engine
        self.random_state, self.progress = random_state, progress

    def fit(
        self,
        X: Any,
        y: Any = None,
        context: Any = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
    ) -> "FlowDensity":
        """Fit the flow to the rows of a table, and return the estimator.

        Args:
            X: Rows, of shape ``(N, D)``: an array, a tensor, or a data frame.
            y: Not used, as scikit-learn's conventions want it.
            context: What each row is given, of shape ``(N, C)``.
            checkpoint: A file to save the run in, as in :func:`~pyro_flows.density.fit_mle`; for
                one start from a ``random_state`` that is a count.
            resume: Whether to go on from ``checkpoint``, if there is such a file.
        """
        _checks.check_choice(_WHO, "standardise", self.standardise, WAYS)
        _checks.check_choice(_WHO, "objective", self.objective, _OBJECTIVES)
        num_starts = _checks.check_count(_WHO, "num_starts", self.num_starts)
        if checkpoint is not None:
            check_repeatable(_WHO, self.random_state, num_starts=num_starts)
        tables, columns = self._tables(X, context)
        tables = complete_rows(
            _WHO,
            tables,
            drop_missing=self.drop_missing,
            advice="Pass drop_missing=True to drop those rows.",
        )
        with seeded(_WHO, as_seed(_WHO, self.random_state)):
            self._integers = self._integer_columns(tables[0])
            train, held_out = split(_WHO, tables, self.validation)
            # A million rows need not be there twice.
            del tables
            outer = self._scaling(train[0])
            saving = {"checkpoint": checkpoint, "resume": resume}
            fits = self._starts(train, held_out, num_starts, outer, saving)
        self.flow_, self.result_ = min(fits, key=lambda fit: fit[1].nll)
        self.density_ = self._over_integers(self.flow_)
        self._keep_columns(columns)
        return self

    def _starts(
        self,
        train: list[Tensor],
        held_out: list[Tensor],
        num_starts: int,
        outer: FlowTransform | None,
        saving: dict[str, Any],
    ) -> list[tuple[Flow, MleResult]]:
        """Return the fits that came to an end; at least one."""
        fits = []
        for k in range(1, num_starts + 1):
            try:
                fits.append(self._one_fit(train, held_out, outer, saving))
            except NonFiniteError as error:
                if k == num_starts and not fits:
                    raise
                logger.warning("%s: start %d of %d failed. %s", _WHO, k, num_starts, error)
        return fits

    def _keep_columns(self, columns: list[Columns]) -> None:
        self._columns = columns
        self.n_features_in_ = columns[0].num
        names = {"feature_names_in_": columns[0].names}
        names["context_names_in_"] = columns[1].names if len(columns) > 1 else None
        for attribute, its in names.items():
            # Those of an earlier fit must not stay.
            vars(self).pop(attribute, None)
            if its is not None:
                setattr(self, attribute, np.array(its, dtype=object))

    def score_samples(self, X: Any, context: Any = None) -> np.ndarray:
        """Return the log-density of each row, in nats, of shape ``(N,)``.

        Args:
            X: Rows, of shape ``(N, D)``.
            context: Of shape ``(N, C)``, where the flow was fitted with one.

        Raises:
            DomainError: The estimator is not fitted, columns have other names, or a column of
                integers holds something else.
            NonFiniteError: There are NaN or infinities.
            ShapeError: There are more or fewer columns than it was fitted to, or the context is
                missing or not wanted.
        """
        tables = self._known_tables(X, context)
        if isinstance(self.density_, Dequantised):
            self.density_.check_integers(_WHO, tables[0])
        # A generator is left where it is, where nothing is drawn.
        seed = as_seed(_WHO, self.random_state) if self.dequantise else None
        with seeded(_WHO, seed), torch.no_grad():
            size = rows_at_once(self.density_)
            tables = [table.to(as_device(_WHO, self.device)) for table in tables]
            chunks = zip(*(table.split(size) for table in tables), strict=True)
            scores = [log_likelihood(self.density_, *chunk) for chunk in chunks]
        return torch.cat(scores).double().cpu().numpy()

    def score(self, X: Any, y: Any = None, context: Any = None) -> float:
        """Return the mean log-density of the rows, in nats.

        Args:
            X: Rows, of shape ``(N, D)``.
            y: Not used, as scikit-learn's conventions want it.
            context: Of shape ``(N, C)``, where the flow was fitted with one.
        """
        return float(self.score_samples(X, context).mean())

    def sample(
        self, n_samples: int | None = None, context: Any = None, random_state: Any = None
    ) -> np.ndarray:
        """Return draws, of shape ``(n_samples, D)``.

        Args:
            n_samples: Number of draws; one, or one for each row of the context, if not given.
            context: Of shape ``(n_samples, C)``, or a single row for all draws, where the flow was
                fitted with one.
            random_state: Seeds the draws, and leaves the global random state alone.

        Raises:
            DomainError: The estimator is not fitted.
            ShapeError: The context is missing or not wanted, or has another number of rows.
        """
        self._check_fitted()
        contexts = self._known_context(context)
        default = 1 if contexts is None else len(contexts)
        n_samples = default if n_samples is None else n_samples
        n_samples = _checks.check_count(_WHO, "n_samples", n_samples)
        if contexts is not None and len(contexts) not in (1, n_samples):
            raise _checks.refusal(
                ShapeError,
                _WHO,
                expected=f"a context of {n_samples} rows, one for each draw, or of one",
                got=f"{len(contexts)}",
            )
        density, size = self.density_, rows_at_once(self.density_)
        with seeded(_WHO, as_seed(_WHO, random_state)), torch.no_grad():
            if contexts is None:
                sizes = [len(rows) for rows in torch.empty(n_samples).split(size)]
                pieces = [density.sample((count,)) for count in sizes]
            else:
                contexts = contexts.to(as_device(_WHO, self.device))
                given = contexts.expand(n_samples, -1).split(size)
                pieces = [density.condition(rows).sample() for rows in given]
        return torch.cat(pieces).cpu().numpy()

    def _one_fit(
        self,
        train: list[Tensor],
        held_out: list[Tensor],
        outer: FlowTransform | None,
        saving: dict[str, Any],
    ) -> tuple[Flow, MleResult]:
        inner = flow = self._build(train, outer)
        if len(train) > 1:
            flow = given = StandardisedContext(
                inner, **context_scaling(_WHO, self.standardise, train[1])
            )
            train, held_out = ([t[0], given.standardised(t[1])] for t in (train, held_out))
        device = as_device(_WHO, self.device)
        flow = flow.to(device)
        train, held_out = ([table.to(device) for table in tables] for tables in (train, held_out))
        fit_by: Any = fit_mle if self.objective == "likelihood" else fit_matching
        result = fit_by(
            self._over_integers(inner.to(device)),
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
            **saving,
        )
        return flow.eval(), result

    def _build(self, train: list[Tensor], outer: FlowTransform | None) -> Flow:
        recipe, dim = flows.find(self.flow), train[0].shape[1]
        options: dict[str, Any] = {"context_dim": train[1].shape[1]} if len(train) > 1 else {}
        # A fit scores; what was not named but passed has its own way.
        if isinstance(self.flow, str) and "one_pass" in inspect.signature(recipe).parameters:
            options["one_pass"] = "scoring"
        inner: Any = recipe(dim, **options)
        if not isinstance(inner, Flow) or inner.event_shape != (dim,):
            raise _checks.refusal(
                ShapeError,
                _WHO,
                expected=f"the recipe to return a Flow over {dim} coordinates",
                got=_checks.describe(inner),
            )
        inner = inner.to(self._dtype())
        return inner if outer is None else Flow([inner.transform, outer], base=inner.base_dist)

    def _tables(self, X: Any, context: Any) -> tuple[list[Tensor], list[Columns]]:
        given = {"X": X} if context is None else {"X": X, "context": context}
        tables = [as_table(_WHO, name, values, self._dtype()) for name, values in given.items()]
        tables = check_rows(_WHO, tables[0], tables[1] if len(tables) > 1 else None)
        pairs = zip(given.values(), tables, strict=True)
        return tables, [columns_of(values, table) for values, table in pairs]

    def _known_tables(self, X: Any, context: Any) -> list[Tensor]:
        """Return tables of the columns that the estimator was fitted to, without gaps."""
        self._check_fitted()
        tables, columns = self._tables(X, context)
        self._columns[0].check(_WHO, "X", columns[0])
        self._check_context(columns[1:])
        advice = "Drop those rows, or fill them in; they have no density."
        return complete_rows(_WHO, tables, drop_missing=False, advice=advice)

    def _known_context(self, context: Any) -> Tensor | None:
        if context is None:
            self._check_context([])
            return None
        table = as_table(_WHO, "context", context, self._dtype())
        self._check_context([columns_of(context, table)])
        return complete_rows(_WHO, [table], drop_missing=False)[0]

    def _check_context(self, theirs: list[Columns]) -> None:
        ours = self._columns[1:]
        if len(ours) != len(theirs):
            wanted = f"a context of {ours[0].num} columns" if ours else "no context"
            raise _checks.refusal(
                ShapeError,
                _WHO,
                expected=f"{wanted}, as it was fitted",
                got=f"one of {theirs[0].num} columns" if theirs else "none",
                advice="Pass context=..." if ours else "Leave it out, or fit with one.",
            )
        for its, other in zip(ours, theirs, strict=True):
            its.check(_WHO, "context", other)

    def _integer_columns(self, data: Tensor) -> Tensor | None:
        """Return which columns take noise; none where none does."""
        integers = (data == data.round()).all(0)
        return integers if self.dequantise and bool(integers.any()) else None

    def _over_integers(self, flow: Flow) -> Density:
        """Return the distribution of the data: of integers, where noise fills their gaps."""
        if self._integers is None:
            return flow
        density = Dequantised(flow, columns=self._integers).train(flow.training)
        return density.to(as_device(_WHO, self.device))

    def _scaling(self, data: Tensor) -> FlowTransform | None:
        if self._integers is not None:
            data = torch.where(self._integers, data + torch.rand_like(data), data)
        different = check_columns(_WHO, data)
        return scaling(_WHO, self.standardise, data, different)

    def _dtype(self) -> torch.dtype:
        return _DTYPES[_checks.check_choice(_WHO, "dtype", self.dtype, tuple(_DTYPES))]
