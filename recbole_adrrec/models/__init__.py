"""Models: each joins layers as its options say, but Popularity, which counts."""

from __future__ import annotations

MODULES = {
    "ADRRec": "recbole_adrrec.models.adrrec",
    "AWRSR": "recbole_adrrec.models.awrsr",
    "HSTU": "recbole_adrrec.models.hstu",
    "MEANTIME": "recbole_adrrec.models.meantime",
    "Popularity": "recbole_adrrec.models.popularity",
    "STOSA": "recbole_adrrec.models.stosa",
    "TiSASRec": "recbole_adrrec.models.tisasrec",
}
"""Name of each model that ``register`` makes known to RecBole, and the module that holds it."""


def available_models() -> list[str]:
    """Names of the models that ``register`` makes known to RecBole, sorted."""
    return sorted(MODULES)
