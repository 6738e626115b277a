"Everything that a lesson needs: `from fastaudio_lite.all import *`"
from .audio import *
from .datasets import *
from .spectrogram import *
from .augment import *
from .data import *
from .kinds import *
from .layers import *
from .training import *
from .classifier import *
from .export import *
