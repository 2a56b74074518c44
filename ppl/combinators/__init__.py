"""Combinators: programs from programs."""

from .cond import Cond as Cond
from .cond import cond as cond
from .mask import Mask as Mask
from .mask import mask as mask
from .mix import Mix as Mix
from .mix import mix as mix
from .scan import Scan as Scan
from .scan import scan as scan
from .vmap import Vmap as Vmap
from .vmap import vmap as vmap
