"""Time-aware sequential recommenders as a RecBole plugin.

>>> import recbole_adrrec
>>> recbole_adrrec.register()
>>> recbole_adrrec.models()
['ADRRec', 'AWRSR', 'HSTU', 'MEANTIME', 'Popularity', 'STOSA', 'TiSASRec']
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_adrrec.models import available_models as models
from recbole_adrrec.version import __version__

if TYPE_CHECKING:
    import os

    from recbole_adrrec.tools.recommend import Recommender


def register() -> None:
    """Make RecBole find our models, options and data sets by name; see :mod:`recbole_adrrec.integration.register`.

    Call it before importing ``recbole.quick_start``, which does not import by itself with today's libraries. Calling
    it again does nothing.

    Raises
    ------
    RuntimeError
        The installed version of RecBole is not one that the plugin works with.
    """
    from recbole_adrrec.integration import register as plugin

    plugin.register()


def load(checkpoint: str | os.PathLike[str], device: str = "cpu") -> Recommender:
    """Load a trained model that answers for users by name; the raw data aren't needed.

    >>> recommender = recbole_adrrec.load("saved/ADRRec.pth")
    >>> recommender.recommend(users=["196"], at="1998-04-23", top=10)

    Parameters
    ----------
    checkpoint : str or path-like
        A file that a training with this package saved.
    device : str
        Where to compute.

    Raises
    ------
    CheckpointError
        See :func:`recbole_adrrec.tools.recommend.load`.
    """
    register()
    from recbole_adrrec.tools import recommend

    return recommend.load(checkpoint, device)


__all__ = ["__version__", "load", "models", "register"]
