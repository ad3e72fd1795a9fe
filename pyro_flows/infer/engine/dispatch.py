"""What sees every operator that torch runs."""

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that leaves torch's compiler alone.

    Else torch imports it with the first operator, to keep it out of ``__torch_dispatch__``; that
    takes more than a second.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
