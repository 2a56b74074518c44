"""Rewards: functions of texts as weights, on the host and on the device."""

from .certainty import Perplexity as Perplexity
from .certainty import SelfCertainty as SelfCertainty
from .device import DeviceReward as DeviceReward
from .device import TokenReward as TokenReward
from .head import RewardHead as RewardHead
from .head import hidden_states as hidden_states
from .head import learn_reward_head as learn_reward_head
from .host import Reward as Reward
from .judge import Judge as Judge
from .process import Score as Score
from .process import StepProduct as StepProduct
from .process import Telescoping as Telescoping
from .program import PythonProgram as PythonProgram
from .program import code_block as code_block
from .verifier import Verifier as Verifier
