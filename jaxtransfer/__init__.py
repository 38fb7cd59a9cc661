"""Transfer learning for JAX: load any pretrained network as a pytree, train what should train.

>>> import jaxtransfer as jt
>>> model = jt.load("checkpoints/glyphs")
>>> model.num_classes
62
"""

import lazy_loader

# What there is stands in the stub beside this file, and is imported when it is first asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
