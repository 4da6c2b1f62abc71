"""Models: each reads its options and joins layers.

The package can be called: ``recbole_adrrec.models()`` lists the names of the models that it registers.
"""

from __future__ import annotations

import sys
import types

MODULES = {
    "ADRRec": "recbole_adrrec.models.adrrec",
    "AWRSR": "recbole_adrrec.models.awrsr",
    "MEANTIME": "recbole_adrrec.models.meantime",
    "STOSA": "recbole_adrrec.models.stosa",
    "TiSASRec": "recbole_adrrec.models.tisasrec",
}
"""Name of each model that RecBole is told about, and the module that holds it."""


class _ModelsPackage(types.ModuleType):
    def __call__(self) -> list[str]:
        """Names of the models that ``register`` makes known to RecBole."""
        return sorted(MODULES)


sys.modules[__name__].__class__ = _ModelsPackage
