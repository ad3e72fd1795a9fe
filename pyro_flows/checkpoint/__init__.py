"""Checkpoint files: tensors and a JSON record in one file that is whole or refused.

The file is one of safetensors', and its own loader reads it; nothing is pickled. Its metadata has
one entry, ``pyro_flows``: a JSON object with the format number, the kind of the checkpoint, the
versions it was written by, the record, and a SHA-256. That is the hash of all bytes of the file,
its own 64 digits taken as zeros, in this format and in every later one. It tells of damage, not
of forgery: whoever can write the file can write the hash.
"""

from pyro_flows.checkpoint.layout import JSON
from pyro_flows.checkpoint.read import Checkpoint, check_matches, read_checkpoint
from pyro_flows.checkpoint.write import write_checkpoint

__all__ = ["JSON", "Checkpoint", "check_matches", "read_checkpoint", "write_checkpoint"]
