"fastaudio.augment.spectrogram: the same module as `fastaudio_lite.compat.fastaudio`, so that a name replaced here is replaced there"
import sys
from fastaudio_lite.compat import fastaudio
sys.modules[__name__] = fastaudio
