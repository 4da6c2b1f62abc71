"""Time-aware sequential recommenders as a RecBole plugin.

>>> import recbole_adrrec
>>> recbole_adrrec.register()
>>> recbole_adrrec.models()
['ADRRec', 'AWRSR', 'MEANTIME', 'STOSA', 'TiSASRec']
"""

from recbole_adrrec import models
from recbole_adrrec.version import __version__


def register() -> None:
    """Make RecBole find our models, their options and our data sets by name; see :mod:`recbole_adrrec.plugin`.

    Call it before importing ``recbole.quick_start``, which does not import by itself with today's libraries. Calling
    it again does nothing.

    Raises
    ------
    RuntimeError
        The installed RecBole lacks something that the plugin builds on; the message names it and the version.
    """
    from recbole_adrrec import plugin

    plugin.register()


__all__ = ["__version__", "models", "register"]
