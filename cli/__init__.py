"""The command line: the main job on the embedded language model."""

from . import demo as demo
from . import gallery as gallery
from . import sample as sample
