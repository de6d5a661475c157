"""alignkit: a course on cross-modal alignment in which every claim is re-run.

Names are loaded when first used, so that `import alignkit` costs almost nothing.
"""

from importlib import import_module

_HOME = {
    "__version__": "alignkit.versions",
    "Pairs": "alignkit.data.pairs",
    "Tokens": "alignkit.data.pairs",
    "emoji": "alignkit.data.emoji",
    "scenes": "alignkit.data.scenes",
    "clips": "alignkit.data.clips",
    "stamps": "alignkit.data.stamps",
    "speech": "alignkit.data.speech",
    "furniture": "alignkit.data.furniture",
    "load": "alignkit.encoders",
    "add_features": "alignkit.encoders",
    "Method": "alignkit.parts.method",
    "Stage": "alignkit.parts.method",
    "info_nce": "alignkit.parts.losses",
    "Budget": "alignkit.training",
    "fit": "alignkit.training",
    "estimate": "alignkit.training",
    "diagnose": "alignkit.training",
    "evaluate_retrieval": "alignkit.evaluation",
    "Claim": "alignkit.claims",
}
__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'alignkit' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
