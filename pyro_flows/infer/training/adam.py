"""Adam for few, flat parameters."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class FlatAdam(torch.optim.AdamW):
    """Adam in one kernel a tensor, without the bookkeeping of ``torch.optim.AdamW.step``.

    That takes 70 microseconds, more than a compiled step of a small model. States, groups and
    schedulers are torch's.

    Args:
        parameters: Tensors with a ``.grad``.
        lr: Step size.
        weight_decay: Decoupled decay of the parameters, by ``lr * weight_decay`` at each step.

    Reference:
        Kingma & Ba (2015), *Adam: A method for stochastic optimization*, algorithm 1; Loshchilov &
        Hutter (2019), *Decoupled weight decay regularization*, algorithm 2.

    Example:
        >>> import torch
        >>> x = torch.ones(3)
        >>> optimizer = FlatAdam([x], lr=0.5)
        >>> x.grad = torch.ones(3)
        >>> optimizer.step()
        >>> x
        tensor([0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, *, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Not used.
        """
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = self._state_of(parameter)
                state["step"] += 1
                torch._fused_adamw_(
                    [parameter],
                    [parameter.grad],
                    [state["exp_avg"]],
                    [state["exp_avg_sq"]],
                    [],
                    [state["step"]],
                    lr=group["lr"],
                    beta1=beta1,
                    beta2=beta2,
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=group["maximize"],
                    grad_scale=None,
                    found_inf=None,
                )

    # Without what torch puts around it, which imports its compiler: more than a second.
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)

    # Spares the wrapper that torch puts around every optimiser's step.
    step.hooked = True  # type: ignore[attr-defined]

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
