"""tutelage: a fine-tuned LLM in, a small fast model for one domain task out (arXiv 2601.10114).

`SCDTrainer` and `SCDConfig` load torch and transformers only when they are asked for, so that importing the package and
printing the command's help stay quick.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["SCDConfig", "SCDTrainer", "__version__"]

if TYPE_CHECKING:
    from tutelage.training.scd_trainer import SCDConfig, SCDTrainer


def __getattr__(name: str) -> Any:
    if name in ("SCDConfig", "SCDTrainer"):
        from tutelage.training import scd_trainer

        return getattr(scd_trainer, name)
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
