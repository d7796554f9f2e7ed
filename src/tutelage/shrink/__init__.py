"""`tutelage shrink`: a student made from a model by removing layers, healed by distillation on text if asked."""
