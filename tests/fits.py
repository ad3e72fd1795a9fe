"""Small fits for the tests of the loop."""

import copy

import torch

import pyro_flows as pf


def affine(input_dim):
    """The smallest flow: a guide of it is a Gaussian."""
    return pf.Flow(pf.transforms.ElementwiseAffine(input_dim))


def guide_for(model, *args, flow=affine, seed=0, **options):
    """Return a guide that is set up: the same one for the same seed, away from the posterior."""
    guide = pf.AutoFlow(model, flow, start="prior", **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        guide.initialise(*args)
    return guide


def fit(model, guide, *args, **options):
    """Fit in few steps, in silence, and from a seed."""
    defaults = {"steps": 20, "particles": 256, "lr": 0.01, "seed": 0, "progress": False}
    if "optimizer" in options:
        del defaults["lr"]
    return pf.fit(model, guide, *args, **{**defaults, **options})


def parameters(guide):
    """Return a copy of a guide's parameters."""
    return [parameter.detach().clone() for parameter in guide.parameters()]


def same(ours, theirs):
    """Whether two lists of tensors are the same bit for bit."""
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def have_their_own_memory(guide):
    """Whether no two parameters are views of one tensor, as they are while a fit goes on."""
    sizes = [(p.untyped_storage().nbytes(), p.nbytes) for p in guide.parameters()]
    return all(held == used for held, used in sizes)


class Watched:
    """An optimiser to pass to a fit, and a callback that copies its state after each step.

    Attributes:
        states: After each step: the guide's parameters, and the moments and step counts.
        infos: What the callback was told.
    """

    def __init__(self, guide, make=None):
        self._guide = guide
        self._make = make or (lambda tensors: pf.infer.training.adam.FlatAdam(tensors, 0.01))
        self.states, self.infos = [], []

    def optimizer(self, tensors):
        self.optimizer_made = self._make(tensors)
        return self.optimizer_made

    def __call__(self, info):
        self.infos.append(info)
        self.states.append(self.state())

    def state(self):
        """Return parameters, and what the optimiser keeps, without the step size."""
        state = copy.deepcopy(self.optimizer_made.state_dict()["state"])
        kept = [value for entry in state.values() for value in entry.values()]
        return [*parameters(self._guide), *(v for v in kept if isinstance(v, torch.Tensor))]

    @property
    def options(self):
        """What to pass to a fit."""
        return {"optimizer": self.optimizer, "callbacks": [self]}
