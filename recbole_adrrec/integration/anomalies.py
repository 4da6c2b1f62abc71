"""What importing RecBole's models does to torch."""

from __future__ import annotations

import importlib

import torch

MODELS = "recbole.model.sequential_recommender"


def mend_anomalies() -> None:
    """Import RecBole's sequential models without turning torch's anomaly detection on (sine.py:25).

    The package imports all its models, and SINE's file turns the detection on for the whole process: from the first
    ``get_model`` on, every operation of every model writes down where it was called, and every gradient is searched for
    NaN. The setting stays what it was; ``torch.autograd.set_detect_anomaly(True)`` still turns it on.
    """
    before = torch.is_anomaly_enabled()
    importlib.import_module(MODELS)
    torch.autograd.set_detect_anomaly(before)
