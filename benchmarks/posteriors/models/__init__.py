"""All posteriors, by name: posteriordb's in the order of their tables, then our own."""

from benchmarks.posteriors.models import (
    arma11,
    banana,
    blr,
    earn_height,
    eight_schools_centered,
    eight_schools_noncentered,
    funnel,
    gp_regr,
    hmm_drive_0,
    hmm_example,
    kidscore_interaction,
    kidscore_interaction_c,
    logearn_height_male,
    logearn_interaction,
    logmesquite,
    mesquite,
    nes,
    one_comp_mm_elim_abs,
)
from benchmarks.posteriors.posterior import Posterior

_MODULES = (
    eight_schools_noncentered,
    eight_schools_centered,
    arma11,
    logearn_interaction,
    logearn_height_male,
    earn_height,
    kidscore_interaction,
    kidscore_interaction_c,
    hmm_example,
    hmm_drive_0,
    gp_regr,
    nes,
    mesquite,
    logmesquite,
    blr,
    one_comp_mm_elim_abs,
    funnel,
    banana,
)
POSTERIORS: dict[str, Posterior] = {module.POSTERIOR.name: module.POSTERIOR for module in _MODULES}
