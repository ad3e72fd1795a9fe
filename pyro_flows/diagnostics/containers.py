"""Groups of arrays, in the form that ArviZ takes: of either generation."""

from datetime import datetime, timezone
from typing import Any

import numpy as np

from pyro_flows.diagnostics.groups import Groups
from pyro_flows.diagnostics.layout import Layout
from pyro_flows.diagnostics.names import SAMPLE_DIMS
from pyro_flows.infer.importance import import_arviz

Attrs = dict[str, Any]


def container(groups: Groups, layout: Layout, attrs: dict[str, Attrs], common: Attrs) -> Any:
    """Return an ``InferenceData`` under ArviZ 0.x, a ``DataTree`` from ArviZ 1 on.

    Args:
        groups: The groups; those of data have no axes chain and draw.
        layout: The layout of the model.
        attrs: Attributes of single groups.
        common: Attributes of all groups.
    """
    az = import_arviz()
    common = {"created_at": datetime.now(timezone.utc).isoformat(), **common}
    datasets = {
        group: _dataset(group, arrays, layout, {**common, **attrs.get(group, {})})
        for group, arrays in groups.items()
    }
    if int(az.__version__.split(".")[0]) >= 1:
        import xarray as xr

        return xr.DataTree.from_dict(datasets)
    return az.InferenceData(**datasets)


def _dataset(group: str, arrays: dict[str, np.ndarray], layout: Layout, attrs: Attrs) -> Any:
    import xarray as xr

    first = () if group.endswith("_data") else SAMPLE_DIMS
    variables, coords = {}, {}
    for label, array in arrays.items():
        dims = (*first, *layout.dims(label, array.ndim - len(first)))
        variables[label] = (dims, array)
        for dim, size in zip(dims, array.shape, strict=True):
            coords[dim] = layout.members.get(dim, np.arange(size))
    return xr.Dataset(variables, coords, attrs)
