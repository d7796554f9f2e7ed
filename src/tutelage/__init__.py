"""tutelage: a fine-tuned LLM in, a small fast model for one domain task out (arXiv 2601.10114).

`METHODS` and `Method` are the table of methods and its type (docs/your-own-method.md). `SCDTrainer` and `SCDConfig`
import torch and transformers on first use, so that importing the package stays quick.
"""

from typing import TYPE_CHECKING, Any

from tutelage.method.methods import METHODS, Method

__version__ = "0.2.0"
__all__ = ["METHODS", "Method", "SCDConfig", "SCDTrainer", "__version__"]

if TYPE_CHECKING:
    from tutelage.training.plan import SCDConfig
    from tutelage.training.scd_trainer import SCDTrainer


def __getattr__(name: str) -> Any:
    if name in ("SCDConfig", "SCDTrainer"):
        from tutelage.training import scd_trainer

        return getattr(scd_trainer, name)
    raise AttributeError(f"module 'tutelage' has no attribute {name!r}")
