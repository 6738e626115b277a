"What `from fastaudio.core.all import *` gave: fastaudio's names, and those of fastai that it uses"
from fastai.data.all import *
from fastai.vision.augment import RandTransform
from fastaudio_lite.compat.fastaudio import *
