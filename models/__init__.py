"""Models: exact finite and Gaussian ones, and language models."""

from . import finite as finite
from . import language as language
from .language import Generation as Generation
from .language import LanguageModel as LanguageModel
from .language import Prefix as Prefix
from .language import Reading as Reading
from .language import Text as Text
from .language import Vocabulary as Vocabulary
from .language import ended as ended
from .language import from_callable as from_callable
from .language import from_nnx as from_nnx
from .language import generation as generation
from .language import load as load
from .language import texts as texts
from .language import token_table as token_table
