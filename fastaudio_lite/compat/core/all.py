"What `from fastaudio.core.all import *` gave: the names of fastaudio, and those of fastai that it uses"
from fastaudio_lite.compat.all import *
