"""Golden vectors: numbers of public reference implementations, in float64."""

import json
import os
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(os.environ.get("ADRREC_GOLDEN") or Path(__file__).with_name("golden"))


def load(path):
    """Arrays as tensors, and what the file says of itself."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}, meta


def right_padded(left_padded, length):
    """Move each row's last ``length`` columns to the front, along with nothing else."""
    width = left_padded.size(1)
    place = (torch.arange(width) + (width - length).unsqueeze(1)).clamp(max=width - 1)
    index = place.view(*place.shape, *[1] * (left_padded.dim() - 2)).expand_as(left_padded)
    return left_padded.gather(1, index)


def close(actual, expected, name=""):
    """To 1e-8; numbers that the reference kept in float32 to their rounding."""
    rounding = 2.0**-23 if expected.dtype == torch.float32 else 0.0
    torch.testing.assert_close(
        actual.double(),
        expected.double().reshape(actual.shape),
        rtol=rounding,
        atol=1e-8,
        msg=lambda text: f"{name}: {text}",
    )


def load_weights(model, names, parameters):
    """Put the reference's weights into ours, ``names`` from theirs to ours; every parameter must have its name."""
    assert set(names) == set(parameters)
    assert set(names.values()) == {name for name, _ in model.named_parameters()}
    state = model.state_dict()
    for theirs, ours in names.items():
        state[ours] = parameters[theirs].reshape(state[ours].shape).double()
    model.load_state_dict(state)
