"""torchvision's VGG family in JAX/Flax, proven equal down to which activations are zero.

The public names and their modules are listed in __init__.pyi. A module, and with it JAX, is
imported when one of its names is first used, so that the command line answers at once.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
